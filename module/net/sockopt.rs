// SPDX-License-Identifier: GPL-2.0-only

//! The socket options of a filtered listener: converts between `struct accf_config` and
//! `struct accf_stats` of `uapi/accf.h` and the types of the policy, and copies to and from user
//! space.

use core::mem::{
    offset_of,
    size_of, //
};

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
    OnClose,
    OnTimeout,
    Parking,
    Stats,
    Timeout,
    WAIT_BUCKETS, //
};

use super::bindings::{
    self,
    accf_config,
    accf_source,
    accf_stats, //
};

/// How many sources a listener tells of.
pub(crate) const SOURCES: usize = bindings::ACCF_SOURCES as usize;

/// The level of accf's socket options.
pub(crate) const SOL_ACCF: c_int = bindings::SOL_ACCF as c_int;

/// An option of the level [`SOL_ACCF`].
#[derive(Clone, Copy)]
pub(crate) enum Name {
    Config,
    Stats,
}

impl Name {
    /// Returns the option with this number. `ENOPROTOOPT`: there is none.
    pub(crate) fn from_number(number: c_int) -> Result<Self> {
        match u32::try_from(number) {
            Ok(bindings::ACCF_CONFIG) => Ok(Self::Config),
            Ok(bindings::ACCF_STATS) => Ok(Self::Stats),
            _ => Err(ENOPROTOOPT),
        }
    }
}

// SAFETY: Six 32-bit numbers, without padding.
unsafe impl AsBytes for accf_config {}
// SAFETY: 64-bit numbers, and arrays of 24 bytes at multiples of eight, without padding.
unsafe impl AsBytes for accf_stats {}

const _: () = assert!(size_of::<accf_config>() == 24);
const _: () = assert!(size_of::<accf_stats>() == (30 + WAIT_BUCKETS) * 8 + SOURCES * 24);
const _: () = assert!(size_of::<accf_source>() == 24);
const _: () = assert!(WAIT_BUCKETS == bindings::ACCF_WAIT_BUCKETS as usize);

impl From<&Config> for accf_config {
    fn from(config: &Config) -> Self {
        Self {
            timeout_ms: config.timeout.millis(),
            max_parked: config.max_parked,
            on_timeout: config.on_timeout.number(),
            state: config.parking.number(),
            on_close: config.on_close.number(),
            probe_ms: config.probe_ms,
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
            parking: Parking::from_number(config.state).ok_or(EINVAL)?,
            on_close: OnClose::from_number(config.on_close).ok_or(EINVAL)?,
            probe_ms: config.probe_ms,
        })
    }
}

impl From<&ListenerInfo> for accf_stats {
    fn from(info: &ListenerInfo) -> Self {
        let ListenerInfo {
            stats,
            half_open,
            half_open_young,
            sources,
            ..
        } = info;
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
            released_paused: stats.ended(End::Paused),
            bypass_paused: stats.bypassed(Bypass::Paused),
            closed_reset: stats.ended(End::ClosedReset),
            closed_reset_unparked: stats.closed_reset_unparked,
            evicted_greediest: stats.evicted_greediest,
            sources: sources.map(accf_source::from),
            released_late: stats.released_late,
            overflow_dropped: stats.overflow_dropped,
            probes: stats.probes,
            died: stats.ended(End::Died),
        }
    }
}

impl From<Option<SourceInfo>> for accf_source {
    fn from(source: Option<SourceInfo>) -> Self {
        source.map_or_else(Self::default, |source| Self {
            address: source.address,
            parked: u64::from(source.parked),
        })
    }
}

/// The settings that the caller of `setsockopt()` asks for.
pub(crate) struct ConfigChange {
    /// The settings.
    pub(crate) config: Config,
    /// Whether the listener stays paused if it is, whatever `config` says.
    pub(crate) keeps_parking: bool,
}

impl From<Config> for ConfigChange {
    fn from(config: Config) -> Self {
        Self {
            config,
            keeps_parking: false,
        }
    }
}

/// Reads the configuration that the caller of `setsockopt()` asks for. May sleep.
///
/// # Safety
///
/// `optval` must be valid for reads of `len` bytes if it points to kernel memory; a pointer to user
/// space is checked.
pub(crate) unsafe fn read_config(optval: bindings::sockptr_t, len: u32) -> Result<ConfigChange> {
    let len = len as usize;
    // Part of the first field makes no sense.
    if len < size_of::<u32>() {
        return Err(EINVAL);
    }
    // As in openat2(): no version of the structure is that long, and checking all bytes takes time.
    // SAFETY: Returns a constant, without preconditions.
    if len > unsafe { bindings::accf_page_size() } {
        return Err(E2BIG);
    }
    let mut config = accf_config::default();
    // SAFETY: `config` has the size that is passed with it, and any bytes are a valid value of it.
    // `optval` and `len` are as the call needs them, by the contract of this function.
    to_result(unsafe {
        bindings::accf_copy_struct_from_sockptr(
            (&raw mut config).cast(),
            size_of::<accf_config>(),
            optval,
            len,
        )
    })?;
    Ok(ConfigChange {
        config: config.try_into()?,
        // A program that was built before the field existed must not end a pause by the way.
        keeps_parking: len <= offset_of!(accf_config, state),
    })
}

/// Answers `getsockopt()`: copies as much of `value` as there is room for, and writes the copied
/// length to `optlen`. May sleep.
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
    /// The configuration of a listener that does not set its own.
    pub(crate) config: Config,
    /// How many requests may be parked in one network namespace; 0 means no limit.
    pub(crate) namespace_limit: u32,
}

/// A consistent picture of a listener's counters and configuration.
pub(crate) struct ListenerInfo {
    /// The counters.
    pub(crate) stats: Stats,
    /// The configuration.
    pub(crate) config: Config,
    /// How many requests count against the SYN backlog.
    pub(crate) half_open: i32,
    /// How many of these are young.
    pub(crate) half_open_young: i32,
    /// The sources that have the most parked requests.
    pub(crate) sources: [Option<SourceInfo>; SOURCES],
}

/// A source of clients, and how many of its requests are parked.
#[derive(Clone, Copy)]
pub(crate) struct SourceInfo {
    /// Its IPv6 address: an IPv4-mapped one, or the first of a /64. Zero: several sources share the
    /// number, and none has most of it.
    pub(crate) address: [u8; 16],
    /// How many of its requests are parked.
    pub(crate) parked: u32,
}
