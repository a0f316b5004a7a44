// SPDX-License-Identifier: MIT OR Apache-2.0

//! Attaching the filter: which sockets take it, and which refuse it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use accf_kit::control;
use accf_kit::endpoint::{bound, connect, connect_here, set_tcp_option, Family, Listen};
use accf_kit::netns::Netns;
use accf_kit::ulp::{self, DATAREADY};
use anyhow::{ensure, Context as _, Result};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{case, each_family, expect_eq, once, Context};
use crate::scene::{errno, exchange_and_close, expect_filter, reads_end, Scene, WireScene};

/// Attaches a filter and returns the errno of the call.
fn errno_of_attaching(socket: impl AsFd, name: &str) -> Result<Option<Errno>> {
    errno(ulp::attach(socket, name))
}

case!(Unloaded, "attach.enoent_without_the_module" => once(not_loaded));
fn not_loaded(_: &Context) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::plain(Family::V4).open(&ns)?;
    expect_eq!(
        errno_of_attaching(&listener, DATAREADY)?,
        Some(Errno::ENOENT),
        "attaching without the module"
    );
    expect_filter(&listener, None, "the listener's filter")?;
    Ok(())
}

case!(Default, "attach.before_listen" => each_family(before_listen));
fn before_listen(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let socket = ns.run(|| bound(family, 0, false))?;
    expect_filter(&socket, None, "the filter before attaching")?;
    expect_eq!(errno_of_attaching(&socket, DATAREADY)?, None, "attaching");
    expect_filter(&socket, Some(DATAREADY), "the filter")?;
    socket.listen(16)?;
    expect_filter(
        &socket,
        Some(DATAREADY),
        "the filter of the listening socket",
    )?;
    Ok(())
}

case!(Default, "attach.after_listen" => each_family(after_listen));
fn after_listen(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::plain(family).open(&ns)?;
    expect_filter(&listener, None, "the filter before attaching")?;
    expect_eq!(errno_of_attaching(&listener, DATAREADY)?, None, "attaching");
    expect_filter(&listener, Some(DATAREADY), "the filter")?;
    Ok(())
}

case!(Default, "attach.twice" => each_family(twice));
fn twice(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    for listener in [
        Listen::filtered(family).open(&ns)?,
        Listen::filtered(family).filter_after_listen().open(&ns)?,
    ] {
        for name in [DATAREADY, "tls"] {
            expect_eq!(
                errno_of_attaching(&listener, name)?,
                Some(Errno::EEXIST),
                "attaching `{name}` after `{DATAREADY}`"
            );
        }
        expect_filter(&listener, Some(DATAREADY), "the filter")?;
    }
    Ok(())
}

case!(Default, "attach.unknown_name" => once(unknown_name));
fn unknown_name(_: &Context) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::plain(Family::V4).open(&ns)?;
    for name in ["nosuchfilter", "datareadyy", ""] {
        expect_eq!(
            errno_of_attaching(&listener, name)?,
            // TCP refuses an empty name before it looks for a filter.
            Some(if name.is_empty() {
                Errno::EINVAL
            } else {
                Errno::ENOENT
            }),
            "attaching `{name}`"
        );
    }
    expect_filter(&listener, None, "the listener's filter")?;
    Ok(())
}

case!(Default, "attach.connected" => each_family(connected));
/// Checks that neither end of a connection takes a filter, and that trying does no harm.
fn connected(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &Listen::plain(family))?;
    let client = scene.connect()?;
    let accepted = scene.accept(context)?;
    for (end, stream) in [("client", &client.stream), ("server", &accepted.stream)] {
        let errno = errno_of_attaching(stream, DATAREADY)?;
        ensure!(
            matches!(errno, Some(Errno::ENOTCONN | Errno::EOPNOTSUPP)),
            "attaching to a connected {end}: expected ENOTCONN or EOPNOTSUPP, saw {errno:?}"
        );
        expect_filter(stream, None, &format!("the {end}'s filter"))?;
    }
    exchange_and_close(client, accepted)
}

case!(Default, "attach.then_connect" => each_family(then_connect));
/// Checks that a bound socket takes the filter, as it may listen later, and that it works like any
/// other socket if it connects instead.
fn then_connect(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &Listen::plain(family))?;
    let server = scene.wire.server_address(family, scene.port());
    let socket = scene.wire.client.run(|| {
        let socket = bound(family, 0, false)?;
        ulp::attach(&socket, DATAREADY).context("attach")?;
        // A mapped address, as the socket is an IPv6 one.
        let address = SocketAddr::new(family.as_seen(server.ip()), server.port());
        socket
            .connect_timeout(&address.into(), context.patience())
            .context("connect with a socket that has the filter")?;
        Ok(socket)
    })?;
    let mut client = std::net::TcpStream::from(socket);
    client.set_read_timeout(Some(context.patience()))?;
    let mut accepted = scene.accept(context)?;
    client.write_all(b"ping")?;
    let mut buffer = [0; 4];
    accepted
        .stream
        .read_exact(&mut buffer)
        .context("server reads")?;
    expect_eq!(&buffer, b"ping", "what the server reads");
    accepted.stream.write_all(b"pong")?;
    client.read_exact(&mut buffer).context("client reads")?;
    expect_eq!(&buffer, b"pong", "what the client reads");
    drop(accepted);
    reads_end(&mut client, "bytes before the end")?;
    Ok(())
}

case!(Default, "attach.mptcp.v4" => once(|context| mptcp(context, Domain::IPV4)));
case!(Default, "attach.mptcp.v6" => once(|context| mptcp(context, Domain::IPV6)));
fn mptcp(context: &Context, domain: Domain) -> Result<()> {
    let ns = Netns::new()?;
    ns.run(|| {
        let socket = match Socket::new(domain, Type::STREAM, Some(Protocol::from(262))) {
            Ok(socket) => socket,
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(Errno::EPROTONOSUPPORT | Errno::ENOPROTOOPT)
                ) =>
            {
                return context.lacks("MPTCP")
            }
            Err(error) => return Err(error).context("MPTCP socket"),
        };
        let address: SocketAddr = if domain == Domain::IPV4 {
            ([127, 0, 0, 1], 0).into()
        } else {
            (std::net::Ipv6Addr::LOCALHOST, 0).into()
        };
        socket.bind(&address.into())?;
        for listens in [false, true] {
            if listens {
                socket.listen(16)?;
            }
            let errno = errno_of_attaching(&socket, DATAREADY)?;
            // MPTCP does not list the option (mptcp_supported_sockopt()).
            expect_eq!(
                errno,
                Some(Errno::ENOPROTOOPT),
                "attaching to an MPTCP socket (listening: {listens})"
            );
            // The library tells that from a socket that is not TCP at all.
            let error = control::attach(&socket, DATAREADY);
            ensure!(
                matches!(error, Err(control::Error::Mptcp)),
                "the library said {error:?}"
            );
        }
        // The listener works after the refusal.
        let server = socket.local_addr()?.as_socket().context("no address")?;
        let _client = connect_here(server)?;
        socket.accept().context("accept on the MPTCP listener")?;
        Ok(())
    })
}

/// Returns an SMC socket, or nothing if the kernel has no SMC.
fn smc_socket() -> Result<Option<Socket>> {
    const AF_SMC: i32 = 43;
    match Socket::new(Domain::from(AF_SMC), Type::STREAM, None) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::EAFNOSUPPORT) => {
            Ok(None)
        }
        Err(error) => Err(error).context("SMC socket"),
    }
}

case!(Default, "attach.smc_fallen_back" => once(smc_fallen_back));
/// Checks that an SMC socket that fell back to TCP refuses the filter, too: its callbacks are still
/// SMC's.
fn smc_fallen_back(context: &Context) -> Result<()> {
    let ns = Netns::new()?;
    ns.run(|| {
        let Some(socket) = smc_socket()? else {
            return context.lacks("SMC");
        };
        // SMC cannot do this, and falls back (smc_setsockopt()).
        const TCP_FASTOPEN: i32 = 23;
        set_tcp_option(&socket, TCP_FASTOPEN, 16).context("TCP_FASTOPEN")?;
        expect_eq!(
            errno_of_attaching(&socket, DATAREADY)?,
            Some(Errno::EOPNOTSUPP),
            "attaching to a socket of SMC that has fallen back to TCP"
        );
        Ok(())
    })
}

case!(Default, "attach.smc" => once(smc));
fn smc(context: &Context) -> Result<()> {
    let ns = Netns::new()?;
    ns.run(|| {
        let Some(socket) = smc_socket()? else {
            return context.lacks("SMC");
        };
        let address: SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&address.into())?;
        socket.listen(16)?;
        expect_eq!(
            errno_of_attaching(&socket, DATAREADY)?,
            Some(Errno::EOPNOTSUPP),
            "attaching to an SMC listener"
        );
        Ok(())
    })
}

case!(Default, "attach.listed_in_sysctl" => once(listed));
fn listed(_: &Context) -> Result<()> {
    let names = ulp::available().context("net.ipv4.tcp_available_ulp")?;
    ensure!(
        names.iter().any(|name| name == DATAREADY),
        "net.ipv4.tcp_available_ulp does not list `{DATAREADY}`: {names:?}"
    );
    Ok(())
}

case!(Default, "attach.shown_by_ss" => once(shown_by_ss));
/// Checks that `ss` names the filter of a listener that has one, and of no other.
fn shown_by_ss(_: &Context) -> Result<()> {
    let ns = Netns::new()?;
    let mut listeners = Vec::new();
    for family in Family::ALL {
        listeners.push((family, Listen::filtered(family).open(&ns)?, true));
        listeners.push((family, Listen::plain(family).open(&ns)?, false));
    }
    let text = ns.command("ss", &["-OHltni"])?;
    for (family, listener, filtered) in &listeners {
        let port = format!(":{} ", listener.port());
        let line = text
            .lines()
            .find(|line| line.contains(&port))
            .with_context(|| format!("`ss -ltni` does not show the {family} listener: {text}"))?;
        expect_eq!(
            line.contains(&format!("tcp-ulp-{DATAREADY}")),
            *filtered,
            "whether `ss -ltni` shows the filter ({family}): {line}"
        );
    }
    // Dumping every socket of the namespace, parked requests among them, does no harm.
    let (_, listener, _) = listeners.first().context("no listener")?;
    let _client = connect(&ns, ([127, 0, 0, 1], listener.port()).into())?;
    let text = ns.command("ss", &["-Htnie", "state", "syn-recv"])?;
    ensure!(
        text.contains(&format!(":{}", listener.port())),
        "`ss` does not show the parked request: {text:?}"
    );
    Ok(())
}
