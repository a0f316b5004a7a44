// SPDX-License-Identifier: MIT OR Apache-2.0

//! Threads that set and read a listener's options, valid and invalid, all at once, while clients
//! connect.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use accf_kit::control::{
    self, accf_config, accf_stats, timeout, ACCF_CONFIG, ACCF_STATS, SOL_ACCF,
};
use accf_kit::endpoint::{
    connect_here, reset_on_close, set_defer_accept, Family, Listen, Listener,
};
use accf_kit::memory::{Memory, Place};
use accf_kit::netns::Netns;
use accf_kit::ulp::DATAREADY;
use accf_kit::wait;
use anyhow::{anyhow, ensure, Context as _, Result};
use nix::errno::Errno;
use nix::libc;

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{describe, stats};
use crate::fuzz::{self, bytes, Fed};
use crate::scene::{join_scoped, serve, REQUEST};

/// The size of `struct accf_stats`.
const STATS: usize = size_of::<accf_stats>();

/// How long a round takes.
const ROUND: Duration = Duration::from_millis(500);
/// The value of `TCP_DEFER_ACCEPT`, in seconds, which never changes.
const DEFERRED: [u32; 3] = [1, 3, 7];

case!(Fuzz, "fuzz.options_at_once" => each_family(at_once));
fn at_once(context: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    ns.enter()?;
    let needed = ["set", "refused", "read", "attach", "clients"];
    fuzz::rounds(context, &needed, |rng, fed| {
        round(context, rng, fed, &ns, family)
    })
}

/// Settings in which each number determines the others: a mixture of two is detected.
fn tied(number: u32) -> [u32; 3] {
    let number = number % 900;
    [number * 7 + 11, number + 1, number % 3]
}

fn to_bytes(words: [u32; 3]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn round(
    context: &Context,
    rng: &mut fastrand::Rng,
    fed: &mut Fed,
    ns: &Netns,
    family: Family,
) -> Result<()> {
    let listener = Listen::filtered(family).backlog(512).open_here()?;
    let first = to_bytes(tied(rng.u32(..)));
    control::set_bytes(&listener, SOL_ACCF, ACCF_CONFIG, &first)?;
    let over = AtomicBool::new(false);
    let counts: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let listener = &listener;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for job in [set, read, attach, set, read] {
            let mut rng = rng.fork();
            let (over, counts) = (&over, &counts);
            threads.push(scope.spawn(move || -> Result<()> {
                let mut memory = Memory::new()?;
                let mut own: BTreeMap<&'static str, u64> = BTreeMap::new();
                while !over.load(Ordering::Relaxed) {
                    pause(&mut rng);
                    *own.entry(job(&mut rng, &mut memory, listener)?)
                        .or_default() += 1;
                }
                let mut all = counts.lock().map_err(|_| anyhow!("a thread panicked"))?;
                own.into_iter()
                    .for_each(|(what, n)| *all.entry(what).or_default() += n);
                Ok(())
            }));
        }
        let mut rng = rng.fork();
        let (over, counts) = (&over, &counts);
        threads.push(scope.spawn(move || -> Result<()> {
            ns.enter()?;
            let mut came = 0;
            while !over.load(Ordering::Relaxed) {
                come(&mut rng, family, listener.port())?;
                came += 1;
            }
            let mut all = counts.lock().map_err(|_| anyhow!("a thread panicked"))?;
            *all.entry("clients").or_default() += came;
            Ok(())
        }));
        let start = Instant::now();
        let mut accepted = Ok(());
        while start.elapsed() < ROUND
            && accepted.is_ok()
            && !threads.iter().any(|t| t.is_finished())
        {
            accepted = take(listener, Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
        let mut outcome = accepted;
        for thread in threads {
            outcome = outcome.and(join_scoped(thread));
        }
        outcome
    })?;
    for (what, count) in counts.into_inner().unwrap_or_default() {
        fed.many(what, count);
    }
    end(context, listener, family)
}

/// Checks that the listener then works like any other.
fn end(context: &Context, listener: &Listener, family: Family) -> Result<()> {
    control::set_config(listener, &timeout(1))?;
    let mut seen = control::Stats::default();
    let gone = wait::until(context.patience(), || {
        take(listener, Duration::ZERO)?;
        seen = stats(listener)?;
        Ok((seen.parked, seen.half_open, seen.half_open_young) == (0, 0, 0))
    })?;
    ensure!(gone, "clients are left: {}", describe(&seen));
    control::set_config(listener, &timeout(60_000))?;
    take(listener, Duration::ZERO)?;
    let mut client = connect_here(family.loopback(listener.port()))?;
    client.write_all(REQUEST)?;
    let accepted = listener
        .accept(context.patience())?
        .context("the last client was not accepted")?;
    serve(&accepted)?;
    reset_on_close(&accepted.stream)
}

/// Accepts the connections in the queue, and resets them.
fn take(listener: &Listener, limit: Duration) -> Result<()> {
    if !wait::readable(listener, limit)? {
        return Ok(());
    }
    loop {
        match listener.socket().accept() {
            Ok((socket, _)) => socket.set_linger(Some(Duration::ZERO))?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("accept"),
        }
    }
}

/// Runs a client that may be reset or dropped at any time.
fn come(rng: &mut fastrand::Rng, family: Family, port: u16) -> Result<()> {
    let mut client = match connect_here(family.loopback(port)) {
        Ok(client) => client,
        // The deadline expired before connect() returned.
        Err(error) if is_reset(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    pause(rng);
    if rng.bool() {
        let _ = client.write_all(REQUEST);
    }
    if rng.bool() {
        reset_on_close(&client)?;
    }
    Ok(())
}

fn is_reset(error: &anyhow::Error) -> bool {
    let error = error.root_cause().downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

/// Yields the processor to the other threads.
fn pause(rng: &mut fastrand::Rng) {
    thread::sleep(Duration::from_micros(rng.u64(..2000)));
}

/// Sets a value, valid or invalid.
fn set(rng: &mut fastrand::Rng, memory: &mut Memory, listener: &Listener) -> Result<&'static str> {
    let whole = Place::BeforeEnd(Memory::ROOM);
    let value = to_bytes(tied(rng.u32(..)));
    if rng.u8(..16) == 0 {
        let seconds = rng.choice(DEFERRED).unwrap_or(1);
        set_defer_accept(listener, seconds.cast_signed())?;
        return Ok("defer");
    }
    if rng.u8(..3) > 0 {
        let mut value = value;
        value.resize(rng.usize(12..100), 0);
        let length = i32::try_from(value.len())?;
        let errno = memory.set(listener, SOL_ACCF, ACCF_CONFIG, whole, &value, length);
        expect_eq!(errno, None, "the errno of setting {value:?}");
        return Ok("set");
    }
    let mut wrong = to_bytes([1, 2, 0]);
    let (place, length, expected) = match rng.u8(..5) {
        0 => (whole, rng.i32(-3..4), Errno::EINVAL),
        1 => (Place::BeforeEnd(rng.usize(..12)), 12, Errno::EFAULT),
        2 => {
            wrong = to_bytes([1, 2, rng.u32(3..)]);
            (whole, 12, Errno::EINVAL)
        }
        3 => {
            wrong.resize(size_of::<accf_config>(), 0);
            wrong.push(rng.u8(1..));
            (whole, i32::try_from(wrong.len())?, Errno::E2BIG)
        }
        _ => (Place::Guard, rng.i32(4..4000), Errno::EFAULT),
    };
    let errno = memory.set(listener, SOL_ACCF, ACCF_CONFIG, place, &wrong, length);
    expect_eq!(
        errno,
        Some(expected),
        "the errno of setting {wrong:?}, {length} bytes {place:?}"
    );
    Ok("refused")
}

/// Reads a value, and checks that it is one setting and not a mixture of two.
fn read(rng: &mut fastrand::Rng, memory: &mut Memory, listener: &Listener) -> Result<&'static str> {
    if rng.bool() {
        stats(listener)?;
        let length = rng.i32(..500);
        let place = Place::BeforeEnd(rng.usize(..500));
        let got = memory.get(listener, SOL_ACCF, ACCF_STATS, place, length);
        let fits =
            usize::try_from(length).is_ok_and(|room| room.min(STATS) <= Memory::writable(place));
        let expected = match length {
            ..0 => Some(Errno::EINVAL),
            _ if fits => None,
            _ => Some(Errno::EFAULT),
        };
        expect_eq!(
            got.errno,
            expected,
            "the errno of reading {length} bytes {place:?}"
        );
        let room = usize::try_from(length).unwrap_or(0).min(STATS);
        ensure!(
            !got.before && got.bytes.len() <= room,
            "{} bytes were written of {room}",
            got.bytes.len()
        );
        return Ok("read");
    }
    let mut value = [0; 12];
    control::get_bytes(listener, SOL_ACCF, ACCF_CONFIG, &mut value)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = value;
    let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    let [seen, max_parked, _] = words;
    let expected = tied(max_parked.wrapping_sub(1));
    let mut deferred = expected;
    // `TCP_DEFER_ACCEPT` changes the first number only.
    if DEFERRED.map(|seconds| seconds * 1000).contains(&seen) {
        deferred[0] = seen;
    }
    ensure!(
        words == expected || words == deferred,
        "settings that were never set: {words:?}, instead of {expected:?}"
    );
    Ok("read")
}

/// Attaches a filter to a listener that has one.
fn attach(
    rng: &mut fastrand::Rng,
    memory: &mut Memory,
    listener: &Listener,
) -> Result<&'static str> {
    let whole = Place::BeforeEnd(Memory::ROOM);
    // An unknown name would start modprobe.
    let (name, expected) = match rng.u8(..4) {
        0 => (Vec::new(), Errno::EINVAL),
        _ => (DATAREADY.as_bytes().to_vec(), Errno::EEXIST),
    };
    let length = i32::try_from(name.len())?;
    let errno = memory.set(
        listener,
        libc::IPPROTO_TCP,
        libc::TCP_ULP,
        whole,
        &name,
        length,
    );
    expect_eq!(errno, Some(expected), "the errno of attaching {name:?}");
    // Other options of its own level are unknown.
    let errno = memory.set(
        listener.as_fd(),
        SOL_ACCF,
        rng.i32(3..),
        whole,
        &bytes(rng, 20),
        12,
    );
    expect_eq!(
        errno,
        Some(Errno::ENOPROTOOPT),
        "the errno of an unknown option"
    );
    Ok("attach")
}
