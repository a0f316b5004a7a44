// SPDX-License-Identifier: GPL-2.0-only

//! What user space asks of a listener, and is told: `struct accf_config` and `struct accf_stats` of `uapi/accf.h`.

use core::mem::size_of;

use kernel::{
    error::to_result,
    ffi::{
        c_char,
        c_int, //
    },
    prelude::*,
    transmute::AsBytes,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use crate::policy::{
    Bypass,
    Config,
    End,
    OnTimeout,
    Stats,
    Timeout,
    WAIT_BUCKETS, //
};

use super::bindings::{
    self,
    accf_config,
    accf_stats, //
};

/// The level of our options.
pub(crate) const SOL_ACCF: c_int = bindings::SOL_ACCF as c_int;

/// The options of that level.
#[derive(Clone, Copy)]
pub(crate) enum Name {
    Config,
    Stats,
}

impl Name {
    /// `ENOPROTOOPT`: there is no such option.
    pub(crate) fn from_number(number: c_int) -> Result<Self> {
        match u32::try_from(number) {
            Ok(bindings::ACCF_CONFIG) => Ok(Self::Config),
            Ok(bindings::ACCF_STATS) => Ok(Self::Stats),
            _ => Err(ENOPROTOOPT),
        }
    }
}

// SAFETY: three 32-bit numbers, without padding.
unsafe impl AsBytes for accf_config {}
// SAFETY: 64-bit numbers only, without padding.
unsafe impl AsBytes for accf_stats {}

const _: () = assert!(size_of::<accf_config>() == 12);
const _: () = assert!(size_of::<accf_stats>() == (21 + WAIT_BUCKETS) * 8);
const _: () = assert!(WAIT_BUCKETS == bindings::ACCF_WAIT_BUCKETS as usize);

impl From<&Config> for accf_config {
    fn from(config: &Config) -> Self {
        Self {
            timeout_ms: config.timeout.millis(),
            max_parked: config.max_parked,
            on_timeout: config.on_timeout.number(),
        }
    }
}

impl TryFrom<accf_config> for Config {
    type Error = Error;

    fn try_from(config: accf_config) -> Result<Self> {
        Ok(Self {
            timeout: Timeout::from_millis(config.timeout_ms),
            max_parked: config.max_parked,
            on_timeout: OnTimeout::from_number(config.on_timeout).ok_or(EINVAL)?,
        })
    }
}

impl From<&ListenerInfo> for accf_stats {
    fn from(account: &ListenerInfo) -> Self {
        let ListenerInfo {
            stats,
            half_open,
            half_open_young,
            ..
        } = account;
        Self {
            parked: stats.parked,
            half_open: i64::from(*half_open),
            half_open_young: i64::from(*half_open_young),
            parked_total: stats.parked_total,
            released_data: stats.ended(End::Data),
            released_fin: stats.ended(End::Fin),
            timeout_accept: stats.ended(End::TimeoutAccept),
            timeout_reset: stats.ended(End::TimeoutReset),
            timeout_drop: stats.ended(End::TimeoutDrop),
            evicted: stats.ended(End::Evicted),
            aborted: stats.ended(End::Aborted),
            fallback: stats.ended(End::Fallback),
            synack_suppressed: stats.synack_suppressed,
            bypass_syncookie: stats.bypassed(Bypass::Syncookie),
            bypass_fastopen: stats.bypassed(Bypass::FastOpen),
            bypass_abort_on_overflow: stats.bypassed(Bypass::AbortOnOverflow),
            bypass_accept_queue_full: stats.bypassed(Bypass::AcceptQueueFull),
            bypass_no_memory: stats.bypassed(Bypass::NoMemory),
            bypass_namespace_limit: stats.bypassed(Bypass::NamespaceLimit),
            bypass_signed: stats.bypassed(Bypass::Signed),
            bypass_other: stats.bypassed(Bypass::Other),
            wait_log2: stats.wait_log2,
        }
    }
}

/// Reads the terms that the caller of `setsockopt()` asks for. May sleep.
///
/// # Safety
///
/// `optval` and `len` are those of `setsockopt()`.
pub(crate) unsafe fn read_config(optval: bindings::sockptr_t, len: u32) -> Result<Config> {
    let len = len as usize;
    // A first field that is cut in two is nobody's intention.
    if len < size_of::<u32>() {
        return Err(EINVAL);
    }
    // As openat2() has it: nobody means that much, and to look at all of it takes time.
    // SAFETY: computes.
    if len > unsafe { bindings::accf_page_size() } {
        return Err(E2BIG);
    }
    let mut config = accf_config::default();
    // SAFETY: `config` is as large as we say and any bytes will do for it; the rest by the contract of this function.
    to_result(unsafe {
        bindings::accf_copy_struct_from_sockptr(
            (&raw mut config).cast(),
            size_of::<accf_config>(),
            optval,
            len,
        )
    })?;
    config.try_into()
}

/// Answers `getsockopt()`: fills in as much of `value` as there is room for, and tells how much. May sleep.
pub(crate) fn write<T: AsBytes>(value: &T, optval: *mut c_char, optlen: *mut c_int) -> Result {
    let optlen = || UserSlice::new(UserPtr::from_ptr(optlen.cast()), size_of::<c_int>());
    let bytes = value.as_bytes();

    let room = usize::try_from(optlen().reader().read::<c_int>()?).map_err(|_| EINVAL)?;
    let len = room.min(bytes.len());
    UserSlice::new(UserPtr::from_ptr(optval.cast()), len)
        .writer()
        .write_slice(&bytes[..len])?;
    optlen().writer().write::<c_int>(&c_int::try_from(len)?)
}

/// What the module's parameters ask of every listener.
#[derive(Clone, Copy)]
pub(crate) struct Defaults {
    /// The terms of a listener that asks for nothing else.
    pub(crate) config: Config,
    /// How many requests may be parked in one network namespace; 0 for any number.
    pub(crate) namespace_limit: u32,
}

/// What [`Listener::account`] shows.
pub(crate) struct ListenerInfo {
    /// The counters.
    pub(crate) stats: Stats,
    /// The terms.
    pub(crate) config: Config,
    /// Requests that count against the SYN backlog.
    pub(crate) half_open: i32,
    /// The young ones of them.
    pub(crate) half_open_young: i32,
}
