// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that runs out just when it is asked for (`CONFIG_FAILSLAB`).

use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::module;

const FAILSLAB: &str = "/sys/kernel/debug/failslab";

/// While it lives, small allocations of the module that must not wait fail; all others do not.
#[derive(Debug)]
pub struct NoMemory {
    _failing: Failing,
}

impl NoMemory {
    /// Has the module's next `times` allocations fail; nothing, if this kernel cannot.
    pub fn for_the_next(times: u32) -> Result<Option<Self>> {
        let failing = Failing::begin(Whose::Module, 100, times)?;
        Ok(failing.map(|failing| Self { _failing: failing }))
    }

    /// Returns how many allocations are still to fail.
    pub fn left(&self) -> Result<u32> {
        left()
    }
}

/// Whose allocations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Allocations by the module, and by what it calls: what it remembers a parked connection by,
    /// and the kernel's requests, SYN-ACKs and connections of a listener that has a filter. The
    /// module must be loaded; one that is loaded later is not meant.
    Module,
    /// Allocations of requests, sockets and packets, by any caller.
    Network,
}

/// The caches of requests, sockets and packets.
///
/// Not all others: where the kernel's own checkers have no memory, they say so, and check no more.
///
/// And not `skbuff_fclone_cache`. What is taken from it without waiting is, but for parts of
/// segments that are sent again, the FIN of a connection with nothing else to send. The kernel does
/// not try again if there is none (`tcp_send_fin()`): the other side never hears of the end, and
/// the socket, which has no timer then, stays for good once no process has it open, with its
/// namespace. That is so at any socket; what comes after would be no more than a look at that.
const CACHES: [&str; 7] = [
    "request_sock_TCP",
    "request_sock_TCPv6",
    "TCP",
    "TCPv6",
    "tw_sock_TCP",
    "tw_sock_TCPv6",
    "skbuff_head_cache",
];

/// That of what the module remembers a parked connection by. Others have theirs there, too, among
/// them the guest's file system (`virtio_fs_enqueue_req()`), which fails for good without.
const MODULE_CACHE: &str = "kmalloc-64";

/// While it lives, some of the small allocations that must not wait fail.
///
/// Those are the allocations in softirqs and under locks: what sends and receives segments. A
/// program's own are not among them.
#[derive(Debug)]
pub struct Failing {
    times: u32,
}

impl Failing {
    /// Has `percent` of a hundred allocations fail, at random; returns nothing if this kernel
    /// cannot.
    pub fn some(whose: Whose, percent: u8) -> Result<Option<Self>> {
        // No run injects as many.
        const MANY: u32 = 1_000_000_000;
        Self::begin(whose, percent, MANY)
    }

    fn begin(whose: Whose, percent: u8, times: u32) -> Result<Option<Self>> {
        ensure!(percent <= 100, "{percent} of a hundred");
        if !Path::new(FAILSLAB).join("require-start").exists() {
            return Ok(None);
        }
        let (start, end) = match whose {
            Whose::Module => module::text()?,
            Whose::Network => (0, u64::MAX),
        };
        for cache in CACHES {
            mark(cache, true)?;
        }
        mark(MODULE_CACHE, whose == Whose::Module)?;
        let armed = Self { times };
        // The probability last: it is what begins it.
        let settings = [
            ("verbose", 0),
            ("task-filter", 0),
            ("cache-filter", 1),
            ("ignore-gfp-wait", 1),
            ("interval", 1),
            ("space", 0),
            ("stacktrace-depth", 32),
            ("require-start", start),
            ("require-end", end),
            ("times", times.into()),
            ("probability", percent.into()),
        ];
        for (name, value) in settings {
            set(name, value)?;
        }
        Ok(Some(armed))
    }

    /// Returns how many allocations have failed.
    pub fn injected(&self) -> Result<u32> {
        Ok(self.times.saturating_sub(left()?))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // An error cannot be reported here.
        let _ = set("probability", 0);
        let _ = set("cache-filter", 0);
        let _ = set("require-start", 0);
        let _ = set("require-end", u64::MAX);
        for cache in CACHES {
            let _ = mark(cache, false);
        }
        let _ = mark(MODULE_CACHE, false);
    }
}

/// Returns how many allocations are still to fail.
fn left() -> Result<u32> {
    let path = Path::new(FAILSLAB).join("times");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.trim()
        .parse()
        .with_context(|| format!("{}: `{}`", path.display(), text.trim()))
}

/// Adds a cache to those that `cache-filter` lets fail, or removes it.
fn mark(cache: &str, fails: bool) -> Result<()> {
    let path = format!("/sys/kernel/slab/{cache}/failslab");
    fs::write(&path, if fails { "1" } else { "0" }).with_context(|| path)
}

fn set(name: &str, value: u64) -> Result<()> {
    let path = Path::new(FAILSLAB).join(name);
    let text = match name {
        "task-filter" | "cache-filter" | "ignore-gfp-wait" => {
            if value == 0 { "N" } else { "Y" }.to_owned()
        }
        _ => value.to_string(),
    };
    fs::write(&path, text).with_context(|| format!("{} = {value}", path.display()))
}
