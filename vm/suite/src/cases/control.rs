// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a server can set and read: `SOL_ACCF`, the module's parameters, `inet_diag`.

use std::net::Shutdown;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use accf_kit::clock::Stamp;
use accf_kit::control::{
    self, accf_config, accf_stats, settings, timeout, Config, OnTimeout, ACCF_CONFIG, ACCF_STATS,
    SOL_ACCF,
};
use accf_kit::endpoint::{bound, Family, Listen};
use accf_kit::module;
use accf_kit::netns::Netns;
use accf_kit::{sockets, ulp};
use anyhow::{bail, ensure, Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::setresuid;
use socket2::SockRef;

use crate::case::{case, each_family, expect_eq, expect_in, once, Context};
use crate::count::{counted, counts, describe, read_counts};
use crate::scene::{
    close, errno, exchange_and_close, expect_reset, receives_nothing, serve, RawScene, Scene,
    WireScene,
};

/// The defaults of the module's parameters.
const DEFAULTS: (u32, u32, u32) = (60_000, 16_384, 0);

/// Returns a configuration as the three numbers that user space and kernel exchange.
fn bytes(numbers: (u32, u32, u32)) -> Vec<u8> {
    [numbers.0, numbers.1, numbers.2]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// The size of the structure.
const SIZE: usize = size_of::<accf_config>();

/// Returns the same with zeros for the fields that follow.
fn whole(numbers: (u32, u32, u32)) -> Vec<u8> {
    let mut whole = bytes(numbers);
    whole.resize(SIZE, 0);
    whole
}

/// Returns the configuration of a listener as its first three numbers.
fn numbers(listener: impl AsFd) -> Result<(u32, u32, u32)> {
    let mut value = [0; SIZE];
    let length = control::get_bytes(listener, SOL_ACCF, ACCF_CONFIG, &mut value)?;
    expect_eq!(length, SIZE, "length of the configuration");
    let word = |nth: usize| -> Option<u32> {
        let bytes = value.get(nth * 4..nth * 4 + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    match (word(0), word(1), word(2)) {
        (Some(timeout), Some(max), Some(policy)) => Ok((timeout, max, policy)),
        _ => bail!("the configuration is too short"),
    }
}

case!(Default, "control.defaults" => each_family(defaults));
fn defaults(context: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let socket = ns.run(|| bound(family, 0, false))?;
    ulp::attach(&socket, ulp::DATAREADY)?;
    for listens in [false, true] {
        if listens {
            socket.listen(16)?;
        }
        expect_eq!(
            numbers(&socket)?,
            DEFAULTS,
            "configuration (listening: {listens})"
        );
        let seen = read_counts(context, &socket, counted!())?;
        expect_eq!(seen.synack_suppressed, 0, "SYN-ACKs not sent");
    }
    expect_eq!(
        numbers(Listen::filtered(family).filter_after_listen().open(&ns)?)?,
        DEFAULTS,
        "configuration of a socket that listened before"
    );
    Ok(())
}

case!(Default, "control.set_and_get" => each_family(set_and_get));
fn set_and_get(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::filtered(family).open(&ns)?;
    for wanted in [
        (50, 1, 0),
        (0, 2, 1),
        (1, 100_000, 2),
        (604_800_000, 16_384, 0),
        (u32::MAX, 3, 1),
    ] {
        control::set_bytes(&listener, SOL_ACCF, ACCF_CONFIG, &bytes(wanted))
            .with_context(|| format!("set {wanted:?}"))?;
        expect_eq!(numbers(&listener)?, wanted, "configuration that was set");
    }
    // The same through the crate's type.
    let wanted = Config {
        timeout: Some(Duration::from_millis(1234)),
        max_parked: NonZeroU32::new(77),
        on_timeout: OnTimeout::Drop,
        ..Config::default()
    };
    control::set_config(&listener, &wanted)?;
    expect_eq!(
        control::config(&listener)?,
        wanted,
        "configuration that was set"
    );
    expect_eq!(numbers(&listener)?, (1234, 77, 2), "its numbers");
    control::set_bytes(&listener, SOL_ACCF, ACCF_CONFIG, &bytes((5, 0, 0)))?;
    expect_eq!(
        numbers(&listener)?,
        (5, DEFAULTS.1, 0),
        "configuration with max_parked of 0"
    );
    Ok(())
}

case!(Default, "control.sizes_of_set" => each_family(sizes_of_set));
/// Checks that a structure shorter than the module's is extended with zeros, and a longer one must
/// have zeros at its end.
fn sizes_of_set(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::filtered(family).open(&ns)?;
    let set = |value: &[u8]| errno(control::set_bytes(&listener, SOL_ACCF, ACCF_CONFIG, value));
    let whole = bytes((0x0102_0304, 0x0506_0708, 1));
    for length in 0..4 {
        expect_eq!(
            set(whole.get(..length).context("too short")?)?,
            Some(Errno::EINVAL),
            "setting {length} bytes"
        );
        expect_eq!(numbers(&listener)?, DEFAULTS, "configuration after that");
    }
    for length in 4..=whole.len() {
        let mut extended = whole.get(..length).context("too short")?.to_vec();
        expect_eq!(set(&extended)?, None, "setting {length} bytes");
        extended.resize(whole.len(), 0);
        let seen = numbers(&listener)?;
        let max_parked = if length == 4 { DEFAULTS.1 } else { seen.1 };
        expect_eq!(
            bytes(seen),
            bytes((0x0102_0304, max_parked, u32::from(length > 8))),
            "configuration after setting {length} bytes"
        );
        if length > 4 {
            expect_eq!(
                bytes(seen),
                extended,
                "configuration after setting {length} bytes"
            );
        }
    }
    let before = bytes((7, 8, 2));
    expect_eq!(set(&before)?, None, "setting 12 bytes");
    for length in [SIZE + 1, SIZE + 4, 100, 1000] {
        let mut longer = whole.clone();
        longer.resize(length, 0);
        if let Some(last) = longer.last_mut() {
            *last = 1;
        }
        expect_eq!(
            set(&longer)?,
            Some(Errno::E2BIG),
            "setting {length} bytes, the last of which is not 0"
        );
        expect_eq!(bytes(numbers(&listener)?), before, "what was set before");
    }
    expect_eq!(
        set(&vec![0; 4097])?,
        Some(Errno::E2BIG),
        "setting more than a page"
    );
    expect_eq!(bytes(numbers(&listener)?), before, "what was set before");
    for length in [13, SIZE, SIZE + 1, 100, 4096] {
        let mut longer = whole.clone();
        longer.resize(length, 0);
        expect_eq!(set(&longer)?, None, "setting {length} bytes");
        expect_eq!(
            bytes(numbers(&listener)?),
            whole,
            "configuration after that"
        );
        expect_eq!(set(&before)?, None, "setting 12 bytes");
    }
    Ok(())
}

case!(Default, "control.sizes_of_get" => each_family(sizes_of_get));
/// Checks that the buffer is filled as far as it reaches, and no byte more.
fn sizes_of_get(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::filtered(family).open(&ns)?;
    let whole = whole((0x0102_0304, 0x0506_0708, 1));
    control::set_bytes(&listener, SOL_ACCF, ACCF_CONFIG, &whole)?;
    for (option, size) in [
        (ACCF_CONFIG, size_of::<accf_config>()),
        (ACCF_STATS, size_of::<accf_stats>()),
    ] {
        for room in (0..20).chain([size - 1, size, size + 1, 1000, 5000]) {
            let mut value = vec![0xa5; room + 8];
            let result = control::get_bytes(
                &listener,
                SOL_ACCF,
                option,
                value.get_mut(..room).context("too short")?,
            );
            let untouched = result.with_context(|| format!("get {room} bytes of {option}"))?;
            expect_eq!(
                untouched,
                room.min(size),
                "length of option {option} in {room} bytes"
            );
            ensure!(
                value.iter().skip(untouched).all(|byte| *byte == 0xa5),
                "option {option} in {room} bytes: bytes behind the first {untouched} were written"
            );
            if option == ACCF_CONFIG {
                expect_eq!(
                    value.get(..untouched),
                    whole.get(..untouched),
                    "the first {untouched} bytes"
                );
            }
        }
        // The length is a signed number to the kernel, and so it is negative.
        expect_eq!(
            errno(control::get_nowhere(&listener, SOL_ACCF, option, 1 << 31))?,
            Some(Errno::EINVAL),
            "getting less than nothing of option {option}"
        );
    }
    Ok(())
}

case!(Default, "control.refused" => each_family(refused));
/// Checks that invalid calls fail and change nothing.
fn refused(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::filtered(family).open(&ns)?;
    control::set_config(&listener, &settings(4321, 99, OnTimeout::Reset))?;
    let before = numbers(&listener)?;
    let set = |name: i32, value: &[u8]| errno(control::set_bytes(&listener, SOL_ACCF, name, value));
    for policy in [3, 4, 256, u32::MAX] {
        expect_eq!(
            set(ACCF_CONFIG, &bytes((1, 2, policy)))?,
            Some(Errno::EINVAL),
            "on_timeout {policy}"
        );
    }
    for length in [0, 4, size_of::<accf_stats>()] {
        expect_eq!(
            set(ACCF_STATS, &vec![0; length])?,
            Some(Errno::ENOPROTOOPT),
            "setting {length} bytes of ACCF_STATS"
        );
    }
    for name in [0, 3, 99, -1, i32::MAX, i32::MIN] {
        expect_eq!(
            set(name, &bytes((1, 2, 0)))?,
            Some(Errno::ENOPROTOOPT),
            "setting option {name}"
        );
        expect_eq!(
            errno(control::get_bytes(&listener, SOL_ACCF, name, &mut [0; 16]))?,
            Some(Errno::ENOPROTOOPT),
            "getting option {name}"
        );
    }
    expect_eq!(
        errno(control::set_nowhere(&listener, SOL_ACCF, ACCF_CONFIG, 12))?,
        Some(Errno::EFAULT),
        "setting what cannot be read"
    );
    for name in [ACCF_CONFIG, ACCF_STATS] {
        expect_eq!(
            errno(control::get_nowhere(&listener, SOL_ACCF, name, 12))?,
            Some(Errno::EFAULT),
            "getting option {name} to where nothing can be written"
        );
    }
    expect_eq!(numbers(&listener)?, before, "configuration after all that");
    Ok(())
}

case!(Default, "control.no_filter" => each_family(no_filter));
/// Checks that plain and accepted sockets do not know the level, and that a listener knows no other
/// level.
fn no_filter(context: &Context, family: Family) -> Result<()> {
    let config = timeout(300);
    let scene = WireScene::new(context, family, &Listen::filtered(family).config(config))?;
    let plain = Listen::plain(family).open(&scene.wire.server)?;
    let (mut speaker, _) = scene.connect_and_ack(context)?;
    speaker.request()?;
    let by_data = scene.accept(context)?;
    serve(&by_data)?;
    speaker.response()?;
    let (silent, _) = scene.connect_and_ack(context)?;
    let by_deadline = scene.accept(context)?;
    let unaware = |what: &str, socket: std::os::fd::BorrowedFd<'_>, level: i32| -> Result<()> {
        for name in [ACCF_CONFIG, ACCF_STATS] {
            let error = errno(control::get_bytes(socket, level, name, &mut [0; 64]))?;
            // IPv4's error for an unknown level.
            let is_v4s = family != Family::V6 && error == Some(Errno::EOPNOTSUPP);
            ensure!(
                is_v4s || error == Some(Errno::ENOPROTOOPT),
                "getting option {name} of level {level:#x} of {what}: expected ENOPROTOOPT, \
                 saw {error:?}"
            );
        }
        expect_eq!(
            errno(control::set_bytes(
                socket,
                level,
                ACCF_CONFIG,
                &bytes((1, 2, 0))
            ))?,
            Some(Errno::ENOPROTOOPT),
            "setting option 1 of level {level:#x} of {what}"
        );
        Ok(())
    };
    unaware("a plain listener", plain.as_fd(), SOL_ACCF)?;
    unaware(
        "a socket accepted for its data",
        by_data.stream.as_fd(),
        SOL_ACCF,
    )?;
    unaware(
        "a socket accepted at its deadline",
        by_deadline.stream.as_fd(),
        SOL_ACCF,
    )?;
    unaware("a client", speaker.stream.as_fd(), SOL_ACCF)?;
    unaware("a filtered listener", scene.listener.as_fd(), SOL_ACCF + 1)?;
    exchange_and_close(speaker, by_data)?;
    exchange_and_close(silent, by_deadline)
}

case!(Default, "control.other_levels" => each_family(other_levels));
/// Checks that all other socket options work as before.
fn other_levels(context: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::filtered(family).open(&ns)?;
    let socket = SockRef::from(&listener);
    let (level, name) = if family == Family::V4 {
        (libc::IPPROTO_IP, libc::IP_TOS)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
    };
    control::set_bytes(&listener, level, name, &0x28_i32.to_ne_bytes())
        .context("set the traffic class")?;
    let mut value = [0; 4];
    control::get_bytes(&listener, level, name, &mut value).context("get the traffic class")?;
    expect_eq!(i32::from_ne_bytes(value), 0x28, "traffic class");
    expect_eq!(
        errno(control::set_bytes(&listener, level, 9999, &[0; 4]))?,
        Some(Errno::ENOPROTOOPT),
        "setting an option that IP does not know"
    );
    if family != Family::V4 {
        // An IPv6 socket takes options of IPv4's level, too.
        control::set_bytes(
            &listener,
            libc::IPPROTO_IP,
            libc::IP_TTL,
            &9_i32.to_ne_bytes(),
        )
        .context("IP_TTL of an IPv6 socket")?;
        expect_eq!(socket.only_v6()?, family == Family::V6, "IPV6_V6ONLY");
    }
    socket.set_keepalive(true)?;
    expect_eq!(socket.keepalive()?, true, "SO_KEEPALIVE");
    expect_eq!(
        numbers(&listener)?,
        DEFAULTS,
        "configuration after all that"
    );
    counts(context, &listener, counted!())
}

case!(Default, "control.each_listener_its_own" => each_family(each_its_own));
fn each_its_own(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let second = Listen::filtered(family)
        .config(settings(400, 5, OnTimeout::Reset))
        .open(&scene.wire.server)?;
    expect_eq!(numbers(&scene.listener)?, DEFAULTS, "the first listener's");
    expect_eq!(numbers(&second)?, (400, 5, 1), "the second listener's");
    let (mut client, _) = scene.connect_and_ack(context)?;
    scene.counts(context, counted!(parked: 1))?;
    counts(context, &second, counted!())?;
    let accepted = scene.serve_parked(context, &mut client)?;
    scene.counts(context, counted!(released_data: 1))?;
    counts(context, &second, counted!())?;
    // A new listener on the port of a closed one begins with the defaults.
    let port = second.port();
    control::set_config(&second, &timeout(1))?;
    drop(second);
    let third = Listen::filtered(family)
        .port(port)
        .open(&scene.wire.server)?;
    expect_eq!(numbers(&third)?, DEFAULTS, "the third listener's");
    close(client, accepted)
}

case!(Default, "control.kept_while_not_listening" => each_family(kept));
/// Checks that a socket keeps its settings while it does not listen.
fn kept(context: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let socket = ns.run(|| bound(family, 4001, false))?;
    ulp::attach(&socket, ulp::DATAREADY)?;
    let wanted = settings(777, 6, OnTimeout::Drop);
    control::set_config(&socket, &wanted).context("before listen()")?;
    for round in 1..3 {
        socket.listen(16)?;
        expect_eq!(
            control::config(&socket)?,
            wanted,
            "configuration after listen(), round {round}"
        );
        counts(context, &socket, counted!())?;
        socket.shutdown(Shutdown::Both)?;
        expect_eq!(
            control::config(&socket)?,
            wanted,
            "configuration after shutdown(), round {round}"
        );
    }
    Ok(())
}

case!(Default, "control.shorter_while_parked" => each_family(shorter));
/// Checks that a new deadline counts from the bare ACK of requests that are already parked.
fn shorter(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (client, ack) = scene.connect_and_pause(context, Duration::from_millis(200))?;
    control::set_config(&scene.listener, &timeout(1200))?;
    let accepted = scene.accept_on_time(context, &client, ack.at, Duration::from_millis(1200))?;
    scene.counts(context, counted!(timeout_accept: 1))?;
    exchange_and_close(client, accepted)
}

case!(Default, "control.overdue_at_once" => each_family(overdue));
/// Checks that requests whose new deadline has passed expire at once.
fn overdue(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let clients = scene.connect_many(5)?;
    scene.counts(context, counted!(parked: 5))?;
    scene.accept_nothing(
        Duration::from_millis(500),
        "the clients have not sent anything",
    )?;
    let set = Stamp::now();
    control::set_config(&scene.listener, &timeout(50))?;
    for client in clients {
        let accepted = scene.accept_from(context, &client)?;
        context.at_once(set, accepted.at, "from the shorter deadline to accept()")?;
        exchange_and_close(client, accepted)?;
    }
    scene.counts(context, counted!(timeout_accept: 5))
}

case!(Default, "control.shorter_with_nobody_parked" => each_family(shorter_while_empty));
/// Checks that a new deadline holds for later clients, although the timer was armed for earlier
/// ones.
fn shorter_while_empty(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (mut client, _) = scene.connect_and_ack(context)?;
    let accepted = scene.serve_parked(context, &mut client)?;
    close(client, accepted)?;
    for (nth, deadline_ms) in [(1, 1200), (2, 500), (3, 800)] {
        control::set_config(&scene.listener, &timeout(deadline_ms))?;
        let (client, ack) = scene.connect_and_ack(context)?;
        let accepted = scene.accept(context)?;
        context.on_time(ack.at, &accepted, Duration::from_millis(deadline_ms.into()))?;
        scene.counts(context, counted!(released_data: 1, timeout_accept: nth))?;
        exchange_and_close(client, accepted)?;
    }
    Ok(())
}

case!(Default, "control.longer_while_parked" => each_family(longer));
fn longer(context: &Context, family: Family) -> Result<()> {
    let listen = Listen::filtered(family).config(timeout(900));
    let scene = WireScene::new(context, family, &listen)?;
    let (client, ack) = scene.connect_and_ack(context)?;
    control::set_config(&scene.listener, &timeout(2100))?;
    let accepted = scene.accept_on_time(context, &client, ack.at, Duration::from_millis(2100))?;
    scene.counts(context, counted!(timeout_accept: 1))?;
    exchange_and_close(client, accepted)
}

case!(Default, "control.no_deadline_while_parked" => each_family(no_deadline));
/// Checks that a deadline can be removed, and a later one set.
fn no_deadline(context: &Context, family: Family) -> Result<()> {
    let listen = Listen::filtered(family).config(timeout(900));
    let scene = WireScene::new(context, family, &listen)?;
    let (client, ack) = scene.connect_and_ack(context)?;
    control::set_config(&scene.listener, &timeout(0))?;
    scene.accept_nothing(
        Duration::from_millis(1800).saturating_sub(Stamp::now().since(ack.at)),
        "its deadline was taken away",
    )?;
    control::set_config(&scene.listener, &timeout(2500))?;
    let accepted = scene.accept_on_time(context, &client, ack.at, Duration::from_millis(2500))?;
    exchange_and_close(client, accepted)
}

case!(Default, "control.policy_while_parked" => each_family(policy));
/// Checks that the settings at the deadline decide what happens to a silent client, not those at
/// its handshake.
fn policy(context: &Context, family: Family) -> Result<()> {
    const DEADLINE: Duration = Duration::from_millis(1500);
    let deadline_ms = DEADLINE.as_millis() as u32;
    let scene = RawScene::new(
        context,
        family,
        &Listen::filtered(family).config(timeout(deadline_ms)),
    )?;
    let (client, ack) = scene.parked(context)?;
    control::set_config(&scene.listener, &settings(deadline_ms, 0, OnTimeout::Reset))?;
    let rst = scene
        .capture
        .wait_for(context.patience(), |packet| packet.segment.is_rst())?
        .context("no reset at the deadline")?;
    context.happened_on_time(ack.at, rst.at, DEADLINE, "to the reset")?;
    scene.counts(context, counted!(timeout_reset: 1))?;
    drop(client);

    let (mut client, _) = scene.parked(context)?;
    control::set_config(&scene.listener, &settings(deadline_ms, 0, OnTimeout::Drop))?;
    scene.requests(context, 0)?;
    receives_nothing(
        &mut client,
        Duration::from_millis(200),
        "what a dropped client is sent",
    )?;
    scene.counts(context, counted!(timeout_reset: 1, timeout_drop: 1))?;

    let (silent, ack) = scene.parked(context)?;
    control::set_config(&scene.listener, &timeout(deadline_ms))?;
    scene.accept_on_time(context, &silent, ack.at, DEADLINE)?;
    scene.counts(
        context,
        counted!(timeout_reset: 1, timeout_drop: 1, timeout_accept: 1),
    )
}

case!(Default, "control.fewer_while_parked" => each_family(fewer));
/// Checks that a smaller `max_parked` evicts the oldest, and keeps the others.
fn fewer(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut clients = scene.parked_many(context, 6)?;
    scene.counts(context, counted!(parked: 6))?;
    let set = Stamp::now();
    control::set_config(&scene.listener, &settings(60_000, 4, OnTimeout::Accept))?;
    for client in clients.iter().take(2) {
        let accepted = scene.accept_from(context, client)?;
        context.at_once(set, accepted.at, "from the smaller number to accept()")?;
    }
    scene.counts(context, counted!(parked: 4, evicted: 2))?;
    control::set_config(&scene.listener, &settings(60_000, 3, OnTimeout::Reset))?;
    let third = clients.get_mut(2).context("no third client")?;
    expect_reset(context, third, "no reset for the third client")?;
    scene.counts(context, counted!(parked: 3, evicted: 3))?;
    control::set_config(&scene.listener, &settings(60_000, 1, OnTimeout::Drop))?;
    scene.counts(context, counted!(parked: 1, evicted: 5))?;
    scene.accept_nothing(Duration::from_millis(300), "the others were not accepted")?;
    let last = clients.last_mut().context("no last client")?;
    scene.serve(context, last)?;
    scene.counts(context, counted!(evicted: 5, released_data: 1))
}

case!(Default, "control.long_deadlines.v4" => once(long_deadlines));
/// Checks that nothing happens before deadlines of days.
fn long_deadlines(context: &Context) -> Result<()> {
    let family = Family::V4;
    let scene = WireScene::filtered(context, family)?;
    let mut clients = Vec::new();
    for days in [1, 3, 7, 25, 49] {
        control::set_config(&scene.listener, &timeout(days * 86_400_000))?;
        clients.push(scene.connect_and_ack(context)?);
        scene.accept_nothing(Duration::from_millis(300), "its deadline is days away")?;
    }
    control::set_config(&scene.listener, &timeout(u32::MAX))?;
    scene.accept_nothing(Duration::from_millis(700), "its deadline is weeks away")?;
    let count = clients.len() as u64;
    scene.counts(context, counted!(parked: count))?;
    let set = Stamp::now();
    control::set_config(&scene.listener, &timeout(100))?;
    for _ in 0..count {
        let accepted = scene.accept(context)?;
        context.at_once(set, accepted.at, "from the shorter deadline to accept()")?;
    }
    scene.counts(context, counted!(timeout_accept: count))
}

case!(Default, "control.told_by_inet_diag" => each_family(told_by_diag));
/// Checks that another process reads through `inet_diag` what the server reads.
fn told_by_diag(context: &Context, family: Family) -> Result<()> {
    let config = settings(60_000, 9, OnTimeout::Reset);
    let scene = RawScene::new(context, family, &Listen::filtered(family).config(config))?;
    let plain = Listen::plain(family).open(&scene.ns)?;
    let (_parked, own) = scene.served_reset_and_parked(context)?;
    let told = control::from_diag(&scene.ns, scene.port())?
        .context("inet_diag does not report the listener")?;
    expect_eq!(told.filter, ulp::DATAREADY, "the filter's name");
    expect_eq!(told.config, config, "configuration by inet_diag");
    expect_eq!(describe(&told.stats), describe(&own), "counts by inet_diag");
    expect_eq!(
        told.stats.wait_log2,
        own.wait_log2,
        "histogram by inet_diag"
    );
    ensure!(
        control::from_diag(&scene.ns, plain.port())?.is_none(),
        "inet_diag reports a filter of a plain listener"
    );
    // Another process, which shares no file descriptor with this one.
    let port = scene.port();
    let output = scene.ns.run(|| {
        Command::new("/proc/self/exe")
            .args(["diag", &port.to_string()])
            .output()
            .context("start another process")
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    expect_eq!(
        text.trim(),
        describe(&own),
        "what another process reads ({})",
        output.status
    );
    // Other dumps of the sockets, with every extension, do no harm.
    scene.ns.command("ss", &["-Htaniemo"])?;
    expect_eq!(
        sockets::requests(&scene.ns, port)?,
        1,
        "requests after that"
    );
    Ok(())
}

/// Prints the counts of a listener: what the other process does.
pub(crate) fn diag(port: u16) -> Result<()> {
    let listener = control::from_diag(&Netns::current()?, port)?.context("no such listener")?;
    println!("{}", describe(&listener.stats));
    Ok(())
}

case!(Alone, "control.parameters" => once(parameters));
/// Checks that listeners begin with the module's parameters, and that 0 for `max_parked` means its
/// parameter.
fn parameters(context: &Context) -> Result<()> {
    let ns = Netns::new()?;
    module::reload("timeout_ms=400 max_parked=3 on_timeout=1")?;
    let listener = Listen::filtered(Family::V4).open(&ns)?;
    expect_eq!(numbers(&listener)?, (400, 3, 1), "configuration");
    control::set_bytes(&listener, SOL_ACCF, ACCF_CONFIG, &bytes((0, 0, 0)))?;
    expect_eq!(
        numbers(&listener)?,
        (0, 3, 0),
        "configuration of zeros: no deadline, the default number, accept"
    );
    drop(listener);
    module::reload("timeout_ms=400 on_timeout=1")?;
    let scene = RawScene::filtered(context, Family::V6)?;
    let (mut client, _) = scene.parked(context)?;
    expect_reset(context, &mut client, "no reset at the deadline")?;
    scene.counts(context, counted!(timeout_reset: 1))?;
    drop(scene);
    module::reload("on_timeout=2 timeout_ms=300")?;
    let scene = RawScene::filtered(context, Family::V4)?;
    let (_client, _) = scene.parked(context)?;
    scene.counts(context, counted!(timeout_drop: 1))?;
    drop(scene);
    module::unload(context.patience())
}

case!(Alone, "control.unprivileged" => once(unprivileged));
/// Checks that a user without `CAP_NET_ADMIN` can lower `max_parked` below the module's parameter,
/// and not raise it.
fn unprivileged(_: &Context) -> Result<()> {
    const UNPRIVILEGED: u32 = 65_534;
    module::reload("max_parked=100")?;
    let ns = Netns::new()?;
    let listeners: Vec<_> = Family::ALL
        .into_iter()
        .map(|family| Listen::filtered(family).open(&ns))
        .collect::<Result<_>>()?;
    for listener in &listeners {
        control::set_config(listener, &settings(1, 101, OnTimeout::Accept))
            .context("as an administrator")?;
    }
    // The process does nothing after this that needs privileges.
    setresuid(
        UNPRIVILEGED.into(),
        UNPRIVILEGED.into(),
        UNPRIVILEGED.into(),
    )
    .context("become an unprivileged user")?;
    for listener in &listeners {
        for (max_parked, error) in [
            (101, Some(Errno::EPERM)),
            (u32::MAX, Some(Errno::EPERM)),
            (100, None),
            (99, None),
            (0, None),
        ] {
            let wanted = bytes((7, max_parked, 2));
            expect_eq!(
                errno(control::set_bytes(listener, SOL_ACCF, ACCF_CONFIG, &wanted))?,
                error,
                "max_parked of {max_parked} where 100 is the default"
            );
        }
        expect_eq!(numbers(listener)?, (7, 100, 2), "configuration");
        let seen = control::stats(listener)?;
        expect_eq!(seen.parked_total, 0, "connections that were parked");
    }
    Ok(())
}

case!(Alone, "control.bad_parameters" => once(bad_parameters));
/// Checks that the module does not load with invalid parameters.
fn bad_parameters(context: &Context) -> Result<()> {
    if module::is_loaded()? {
        module::unload(context.patience())?;
    }
    for parameter in [
        "on_timeout=3",
        "on_timeout=255",
        "on_timeout=reset",
        "timeout_ms=soon",
        "timeout_ms=",
        "max_parked=many",
        "max_parked_netns=many",
    ] {
        let error = match module::load(parameter) {
            Ok(()) => {
                module::unload(context.patience())?;
                bail!("the module loads with `{parameter}`");
            }
            Err(error) => error.downcast_ref::<Errno>().copied(),
        };
        expect_eq!(error, Some(Errno::EINVAL), "loading with `{parameter}`");
        expect_eq!(
            module::is_loaded()?,
            false,
            "whether the module is loaded after `{parameter}`"
        );
    }
    for parameter in ["timeout_ms=-1", "timeout_ms=4294967296", "max_parked=-5"] {
        ensure!(
            module::load(parameter).is_err(),
            "the module loads with `{parameter}`"
        );
    }
    // A failed load leaves nothing behind that a valid one would trip over.
    module::load("timeout_ms=4294967295 max_parked=1 max_parked_netns=0 on_timeout=2")?;
    let ns = Netns::new()?;
    let listener = Listen::filtered(Family::V4).open(&ns)?;
    expect_eq!(
        numbers(&listener)?,
        (u32::MAX, 1, 2),
        "configuration of the largest values"
    );
    expect_in!(
        module::refcount()?.unwrap_or(0),
        1..=u64::MAX,
        "the module's reference count"
    );
    drop(listener);
    module::unload(context.patience())
}
