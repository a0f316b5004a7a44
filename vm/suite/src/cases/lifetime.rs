// SPDX-License-Identifier: MIT OR Apache-2.0

//! Unloading: the module can be unloaded if and only if nothing uses it, and leaves nothing behind.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use accf_kit::account::stats;
use accf_kit::control::{set_config, settings, OnTimeout};
use accf_kit::endpoint::{bound, connect_here, Family, Listen};
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::tun_clients::TunClients;
use accf_kit::wire::{Wire, INTERFACE};
use accf_kit::{module, sockets, ulp, wait};
use anyhow::{ensure, Context as _, Result};
use nix::errno::Errno;

use crate::case::{case, each_family, expect_eq, once, Context, Kernel};
use crate::scene::{
    exchange_and_close, expect_filter, expect_reset, join_scoped, reads_reset, requests, serve,
    RawScene, Scene, WireScene, REQUEST,
};

/// Unloads the module, which may take a grace period or two after the last close.
fn unloads(context: &Context) -> Result<()> {
    module::unload(context.patience())
}

/// Checks that nothing refers to the module any longer.
fn refcount_is_zero(context: &Context) -> Result<()> {
    let mut seen = None;
    wait::until(context.patience(), || {
        seen = module::refcount()?;
        Ok(seen == Some(0))
    })?;
    expect_eq!(seen, Some(0), "the module's reference count");
    Ok(())
}

case!(Alone, "lifetime.unload_is_refused_while_listening" => once(refused));
fn refused(context: &Context) -> Result<()> {
    module::reload("")?;
    refcount_is_zero(context)?;
    let ns = Netns::new()?;
    for family in Family::ALL {
        let listener = Listen::filtered(family).open(&ns)?;
        expect_eq!(
            module::try_unload(),
            Err(Errno::EWOULDBLOCK),
            "unloading while a {family} listener has the filter"
        );
        let output = Command::new("rmmod").arg(module::NAME).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && text.contains("in use"),
            "`rmmod` does not say that the module is in use: {} {text}",
            output.status
        );
        drop(listener);
    }
    unloads(context)?;
    let late = Listen::plain(Family::V4).open(&ns)?;
    let error = ulp::attach(&late, ulp::DATAREADY);
    expect_eq!(
        error.err().and_then(|error| error.raw_os_error()),
        Some(Errno::ENOENT as i32),
        "attaching after unloading"
    );
    module::load("")?;
    ulp::attach(&late, ulp::DATAREADY).context("attach after loading again")?;
    drop(late);
    unloads(context)
}

case!(Alone, "lifetime.unload_with_a_request_parked" => each_family(unload_parked));
/// Checks that closing a listener ends a parked request, releases the module, and that the client
/// gets a reset as from any kernel.
fn unload_parked(context: &Context, family: Family) -> Result<()> {
    module::reload("")?;
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    scene.requests(context, 1)?;
    ensure!(
        module::refcount()?.unwrap_or(0) > 0,
        "nothing holds the module while a request is parked"
    );
    let RawScene {
        ns,
        host,
        listener,
        capture,
        ..
    } = scene;
    let port = listener.port();
    drop(listener);
    requests(&ns, port, context, 0)?;
    unloads(context)?;
    let told = expect_reset(context, &mut client, "no reset for the close")?;
    // The module is unloaded: TCP answers the client's data with a reset.
    client.data(REQUEST)?;
    let answer = expect_reset(context, &mut client, "no reset for data after the close")?;
    for reset in [told, answer] {
        expect_eq!(
            reset.segment.seq,
            client.rcv_nxt,
            "sequence number of the reset"
        );
    }
    expect_eq!(capture.stop()?.syn_acks(), 1, "SYN-ACKs");
    drop(host);
    Ok(())
}

case!(Alone, "lifetime.unload_with_an_accepted_socket_open" => each_family(unload_accepted));
/// Checks that an accepted socket works after the module is unloaded.
fn unload_accepted(context: &Context, family: Family) -> Result<()> {
    module::reload("timeout_ms=500")?;
    let scene = WireScene::filtered(context, family)?;
    let (mut spoken, _) = scene.connect_and_ack(context)?;
    spoken.request()?;
    let by_data = scene.accept(context)?;
    let (silent, _) = scene.connect_and_ack(context)?;
    let by_deadline = scene.accept(context)?;
    let WireScene { listener, wire, .. } = scene;
    drop(listener);
    unloads(context)?;
    serve(&by_data)?;
    spoken.response()?;
    exchange_and_close(spoken, by_data)?;
    exchange_and_close(silent, by_deadline)?;
    drop(wire);
    Ok(())
}

case!(Alone, "lifetime.unload_after_a_reset" => once(unload_after_reset));
fn unload_after_reset(context: &Context) -> Result<()> {
    module::reload("")?;
    let scene = RawScene::filtered(context, Family::V6)?;
    for _ in 0..10 {
        let (mut client, _) = scene.parked(context)?;
        client.rst()?;
    }
    scene.requests(context, 0)?;
    // The same by `ss`.
    let text = scene.ns.command("ss", &["-Htn", "state", "syn-recv"])?;
    expect_eq!(text.trim(), "", "half-open requests in `ss`");
    drop(scene.listener);
    refcount_is_zero(context)?;
    unloads(context)
}

case!(Alone, "lifetime.attached_and_closed_at_once" => once(closed_at_once));
/// Checks filters of sockets that never listen, or never get a client.
fn closed_at_once(context: &Context) -> Result<()> {
    module::reload("")?;
    let ns = Netns::new()?;
    ns.run(|| {
        for family in Family::ALL {
            for _ in 0..20 {
                let socket = bound(family, 0, false)?;
                ulp::attach(&socket, ulp::DATAREADY)?;
                drop(socket);
                drop(Listen::filtered(family).open_here()?);
                drop(Listen::filtered(family).filter_after_listen().open_here()?);
            }
        }
        Ok(())
    })?;
    refcount_is_zero(context)?;
    unloads(context)
}

case!(
    Alone, "lifetime.load_and_unload_again_and_again" =>
    once(again_and_again).long(Duration::from_secs(120))
);
/// Loads, uses and unloads the module several times.
fn again_and_again(context: &Context) -> Result<()> {
    let rounds = match context.kernel {
        Kernel::Stock => 12,
        Kernel::Dev => 6,
    };
    let wire = Wire::new()?;
    for round in 0..rounds {
        module::reload("")?;
        let family = *Family::ALL
            .get(round % Family::ALL.len())
            .context("no family")?;
        let scene = WireScene::on(context, wire.clone(), family, &Listen::filtered(family))?;
        let (mut client, _) = scene.connect_and_ack(context)?;
        let (parked, _) = scene.connect_and_ack(context)?;
        scene.requests(context, 2)?;
        let accepted = scene.serve_parked(context, &mut client)?;
        drop((scene, accepted, client, parked));
        module::unload(context.patience()).with_context(|| format!("round {}", round + 1))?;
    }
    Ok(())
}

case!(Alone, "lifetime.unload_under_traffic" => once(under_traffic));
/// Checks that unloading fails at any time while clients come and go.
fn under_traffic(context: &Context) -> Result<()> {
    const CLIENTS: usize = 60;
    module::reload("")?;
    let family = Family::V4;
    let scene = WireScene::filtered(context, family)?;
    let over = AtomicBool::new(false);
    let attempts = thread::scope(|scope| {
        let unloader = scope.spawn(|| -> Result<usize> {
            let mut attempts = 0;
            while !over.load(Ordering::Relaxed) {
                expect_eq!(
                    module::try_unload(),
                    Err(Errno::EWOULDBLOCK),
                    "unloading while a listener has the filter"
                );
                attempts += 1;
                sleep(Duration::from_millis(1));
            }
            Ok(attempts)
        });
        let clients: Result<()> = (|| {
            for nth in 0..CLIENTS {
                let mut client = scene.connect()?;
                if nth % 3 == 0 {
                    accf_kit::endpoint::reset_on_close(&client.stream)?;
                    continue;
                }
                scene.serve(context, &mut client)?;
            }
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        let attempts = join_scoped(unloader)?;
        clients.map(|()| attempts)
    })?;
    context.note(format!("{attempts} attempts"));
    scene.requests(context, 0)?;
    drop(scene);
    unloads(context)
}

case!(
    Alone, "lifetime.unload_at_the_deadline" =>
    once(unload_at_the_deadline).long(Duration::from_secs(120))
);
/// Closes the listener and unloads the module just as deadlines expire.
fn unload_at_the_deadline(context: &Context) -> Result<()> {
    const CLIENTS: usize = 20;
    const DEADLINE: Duration = Duration::from_millis(600);
    let wire = Wire::new()?;
    let mut rng = context.rng();
    for round in 0..6_i64 {
        module::reload(&format!("timeout_ms={}", DEADLINE.as_millis()))?;
        let family = Family::V6;
        let scene = WireScene::on(context, wire.clone(), family, &Listen::filtered(family))?;
        let server = wire.server_address(family, scene.port());
        let (clients, ack) = wire.client.run(|| {
            let clients = (0..CLIENTS)
                .map(|_| connect_here(server))
                .collect::<Result<Vec<_>>>()?;
            Ok((clients, accf_kit::clock::Stamp::now()))
        })?;
        let aim = DEADLINE + Duration::from_millis(rng.u64(..20));
        let WireScene { listener, .. } = scene;
        sleep(aim.saturating_sub(accf_kit::clock::Stamp::now().since(ack)));
        drop(listener);
        module::unload(context.patience()).with_context(|| format!("round {}", round + 1))?;
        drop(clients);
    }
    Ok(())
}

case!(
    Alone, "lifetime.closed_while_clients_reset_at_the_deadline" =>
    once(closed_at_the_deadline).long(Duration::from_secs(120))
);
/// Closes a listener while deadlines expire and the same clients reset: all three end the same
/// requests.
fn closed_at_the_deadline(context: &Context) -> Result<()> {
    const CLIENTS: u32 = 200;
    module::reload("")?;
    let rounds = match context.kernel {
        Kernel::Stock => 40,
        Kernel::Dev => 10,
    };
    let family = Family::V4;
    let ns = Netns::new()?;
    let mut rng = context.rng();
    let listen = Listen::filtered(family).backlog(1024).port(4003);
    let mut tun = TunClients::new(&ns, family, 4003)?;
    for round in 0..rounds {
        let listener = listen.open(&ns)?;
        let first = round * CLIENTS;
        let mut clients = tun.open(first..first + CLIENTS, context.patience())?;
        let on_timeout = match round % 3 {
            0 => OnTimeout::Reset,
            1 => OnTimeout::Drop,
            _ => OnTimeout::Accept,
        };
        rng.shuffle(&mut clients);
        let pause = Duration::from_micros(rng.u64(..5_000));
        thread::scope(|scope| -> Result<()> {
            let closer = scope.spawn(move || -> Result<()> {
                set_config(&listener, &settings(1, 0, on_timeout))?;
                sleep(pause);
                drop(listener);
                Ok(())
            });
            for client in &mut clients {
                tun.push(client, Flags::RST, b"")?;
            }
            join_scoped(closer)
        })?;
        requests(&ns, 4003, context, 0)?;
        while tun.pump(Duration::ZERO, |_, _| Ok(()))? {}
    }
    drop(tun);
    refcount_is_zero(context)?;
    unloads(context)
}

case!(Alone, "lifetime.server_killed" => each_family(server_killed));
/// Checks that killing a server leaves nothing behind, and that its clients get resets.
fn server_killed(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 20;
    module::reload("")?;
    let wire = Wire::new()?;
    let (mut server, port) = start_holder(&wire.server, family)?;
    let outcome: Result<_> = (|| {
        let address = wire.server_address(family, port);
        let clients = wire.client.run(|| {
            (0..CLIENTS)
                .map(|_| connect_here(address))
                .collect::<Result<Vec<TcpStream>>>()
        })?;
        requests(&wire.server, port, context, CLIENTS)?;
        Ok(clients)
    })();
    server.kill()?;
    server.wait()?;
    let clients = outcome?;
    requests(&wire.server, port, context, 0)?;
    unloads(context)?;
    for mut client in clients {
        // Told without having sent anything.
        reads_reset(&mut client)?;
    }
    Ok(())
}

/// Starts another process that holds a filtered listener inside a namespace, and returns its port.
fn start_holder(ns: &Netns, family: Family) -> Result<(Child, u16)> {
    ns.run(|| {
        let mut child = Command::new("/proc/self/exe")
            .args(["hold", &family.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a server process")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line
            .trim()
            .parse()
            .with_context(|| format!("the server process said `{}`", line.trim()))?;
        Ok((child, port))
    })
}

/// Holds a listener open until killed: what the other process does.
pub(crate) fn hold(_: &Context, family: &str) -> Result<()> {
    let family = Family::ALL
        .into_iter()
        .find(|candidate| candidate.to_string() == family)
        .with_context(|| format!("no family is called {family}"))?;
    let listener = Listen::filtered(family).open_here()?;
    println!("{}", listener.port());
    io::stdout().flush()?;
    // Never accepts, and ends when it is killed.
    loop {
        sleep(Duration::from_secs(3600));
    }
}

case!(Alone, "lifetime.namespace_gone" => each_family(namespace_gone));
/// Checks that both namespaces can be destroyed while requests are parked and close to their
/// deadlines.
fn namespace_gone(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 20;
    module::reload("timeout_ms=1500")?;
    let scene = WireScene::filtered(context, family)?;
    let clients = scene.connect_many(CLIENTS)?;
    scene.requests(context, CLIENTS)?;
    ensure!(
        module::refcount()?.unwrap_or(0) > 0,
        "nothing holds the module while requests are parked"
    );
    drop((scene, clients));
    refcount_is_zero(context)?;
    // Past the deadline, with the module loaded: nothing must be left that calls it.
    sleep(Duration::from_secs(2));
    unloads(context)
}

case!(Alone, "lifetime.interface_gone_before_the_deadline" => each_family(interface_gone));
/// Removes the interface that clients came through, before their deadline.
///
/// Whether the connections are accepted then is up to the kernel, as their address is gone, too; it
/// must do no harm.
fn interface_gone(context: &Context, family: Family) -> Result<()> {
    module::reload("timeout_ms=1500")?;
    let scene = WireScene::filtered(context, family)?;
    let clients = scene.connect_many(5)?;
    scene.requests(context, clients.len())?;
    let WireScene {
        wire,
        listener,
        capture,
        ..
    } = scene;
    drop(capture);
    wire.server.ip(&format!("link del {INTERFACE}"))?;
    sleep(Duration::from_secs(2));
    let mut accepted = 0;
    while listener.accept_now()?.is_some() {
        accepted += 1;
    }
    context.note(format!(
        "{accepted} of {} connections accepted, {} requests left",
        clients.len(),
        sockets::requests(&wire.server, listener.port())?
    ));
    drop(listener);
    drop((clients, wire));
    unloads(context)
}

case!(Alone, "lifetime.shut_down_and_listen_again" => each_family(listen_again));
/// Checks that a listener that is shut down and listens again keeps its filter.
///
/// Nothing tells the module of `shutdown()`. If the listener listens again soon, clients that were
/// parked before stay parked.
fn listen_again(context: &Context, family: Family) -> Result<()> {
    module::reload("")?;
    // A port that the kernel has chosen would be released by shutdown().
    let listen = Listen::filtered(family).port(4000);
    let scene = WireScene::new(context, family, &listen)?;
    let (parked, _) = scene.connect_and_ack(context)?;
    scene.requests(context, 1)?;
    scene.listener.socket().shutdown(Shutdown::Both)?;
    expect_eq!(
        module::try_unload(),
        Err(Errno::EWOULDBLOCK),
        "unloading while a socket has the filter"
    );
    expect_filter(
        &scene.listener,
        Some(ulp::DATAREADY),
        "the filter after shutdown()",
    )?;
    scene.listener.socket().listen(16)?;
    let (mut client, _) = scene.connect_and_pause(context, Duration::from_secs(1))?;
    let accepted = scene.serve_parked(context, &mut client)?;
    drop((scene, accepted, client, parked));
    unloads(context)
}

case!(Alone, "lifetime.attached_between_two_lives" => each_family(attached_between));
/// Shuts a plain listener down, attaches the filter, and listens again; checks that a client that
/// is half-open since before is parked.
fn attached_between(context: &Context, family: Family) -> Result<()> {
    module::reload("")?;
    // A port that the kernel has chosen would be released by shutdown().
    let scene = RawScene::new(context, family, &Listen::plain(family).port(4000))?;
    let mut half_open = scene.half_open(context)?;
    scene.requests(context, 1)?;
    scene.listener.socket().shutdown(Shutdown::Both)?;
    ulp::attach(&scene.listener, ulp::DATAREADY)?;
    scene.listener.socket().listen(16)?;
    half_open.ack()?;
    wait::until(context.patience(), || {
        Ok(stats(&scene.listener)?.parked == 1)
    })?;
    scene.accept_nothing(
        Duration::from_millis(500),
        "the client has not sent anything",
    )?;
    scene.serve(context, &mut half_open)?;
    let seen = stats(&scene.listener)?;
    expect_eq!(
        (seen.parked, seen.released_data),
        (0, 1),
        "parked now, and released"
    );
    drop((scene, half_open));
    unloads(context)
}

case!(Alone, "lifetime.shut_down_before_the_deadline" => each_family(stopped_at_the_deadline));
/// Checks that the client of a parked request is told, once, if the listener was shut down, and not
/// only at its deadline.
fn stopped_at_the_deadline(context: &Context, family: Family) -> Result<()> {
    module::reload("timeout_ms=500")?;
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    scene.requests(context, 1)?;
    scene.listener.socket().shutdown(Shutdown::Both)?;
    scene.requests(context, 0)?;
    let told = expect_reset(context, &mut client, "no reset after shutdown()")?;
    expect_eq!(
        told.segment.seq,
        client.rcv_nxt,
        "sequence number of the reset"
    );
    // Time for a segment that was sent to arrive.
    let more = client.receive_until(Duration::from_millis(500), |_| true)?;
    ensure!(more.is_none(), "the client got {more:?}");
    drop(client);
    let RawScene {
        listener, capture, ..
    } = scene;
    expect_eq!(capture.stop()?.resets(), 1, "resets");
    drop(listener);
    unloads(context)
}

case!(Alone, "lifetime.connected_in_vain_and_listening_again" => once(listen_without_hooks));
/// Shuts a listener for both families down, tries to connect to an IPv4 address, and listens again:
/// meanwhile TCP has replaced the socket's operations, and makes connections without calling the
/// filter.
///
/// Clients that were parked before are accepted, too, and nothing of them is left.
fn listen_without_hooks(context: &Context) -> Result<()> {
    const NOWHERE: &str = "[::ffff:255.255.255.255]:1";
    module::reload("timeout_ms=5000")?;
    // A port that the kernel has chosen would be released by shutdown().
    let listen = Listen::filtered(Family::Mapped).port(4000);
    let scene = WireScene::new(context, Family::Mapped, &listen)?;
    let (mut sends, _) = scene.connect_and_ack(context)?;
    let (silent, _) = scene.connect_and_ack(context)?;
    scene.requests(context, 2)?;

    let socket = scene.listener.socket();
    socket.shutdown(Shutdown::Both)?;
    let nowhere: SocketAddr = NOWHERE.parse()?;
    ensure!(
        socket.connect(&nowhere.into()).is_err(),
        "connected to {NOWHERE}"
    );
    socket.listen(16)?;

    sends.request()?;
    let accepted = scene.accept_from(context, &sends)?;
    serve(&accepted)?;
    sends.response()?;
    // The silent client is accepted at its deadline.
    let accepted = scene.accept_from(context, &silent)?;
    drop((scene, accepted, sends, silent));
    unloads(context)
}

case!(Alone, "lifetime.reuseport_migration" => each_family(migration));
/// Closes a listener of a reuseport group, so that TCP migrates its requests to another one.
///
/// Migrated or dropped: no client is served twice, none pins the module, and the other listener
/// works.
fn migration(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 16;
    module::reload("")?;
    let wire = Wire::new()?;
    wire.server.set_sysctl("net.ipv4.tcp_migrate_req", "1")?;
    for other in ["filtered", "plain"] {
        let filtered = Listen::filtered(family).reuse_port();
        let scene = WireScene::on(context, wire.clone(), family, &filtered)?;
        let listen = if other == "filtered" {
            filtered
        } else {
            Listen::plain(family).reuse_port()
        };
        let second = listen.port(scene.port()).open(&wire.server)?;
        let mut clients = scene.connect_many(CLIENTS)?;
        sleep(Duration::from_millis(300));
        let parked = sockets::requests(&wire.server, scene.port())?;
        ensure!(parked > 0, "no request is parked on the first listener");
        let port = scene.port();
        let WireScene {
            listener, capture, ..
        } = scene;
        drop(listener);
        for client in &mut clients {
            client.request()?;
        }
        let mut served = 0;
        while let Some(accepted) = second.accept(Duration::from_millis(700))? {
            serve(&accepted)?;
            served += 1;
        }
        let mut answered = 0;
        for client in &mut clients {
            client
                .stream
                .set_read_timeout(Some(Duration::from_millis(200)))?;
            answered += usize::from(client.response().is_ok());
        }
        context.note(format!(
            "{other}: {parked} of {CLIENTS} parked, {served} served, {answered} answered"
        ));
        expect_eq!(answered, served, "clients answered ({other})");
        drop((second, clients));
        requests(&wire.server, port, context, 0)
            .with_context(|| format!("beside a {other} listener"))?;
        drop(capture);
        refcount_is_zero(context)?;
    }
    drop(wire);
    unloads(context)
}
