// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interface between user space and the module: mirrors `module/uapi/accf.h` name by name.
//!
//! The header describes each field, and so do the types that this crate builds from the structures:
//! [`Config`](crate::Config) and [`Stats`](crate::Stats). A test compiles the header and compares.
//!
//! Later modules may add fields at the end of both structures. [`decode`] reads a shorter structure
//! as if zeros followed it, and ignores the additional bytes of a longer one.

#![allow(non_camel_case_types)]

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The level of `getsockopt()` and `setsockopt()`.
pub const SOL_ACCF: i32 = 0xACCF;
/// The option that gets and sets an [`accf_config`].
pub const ACCF_CONFIG: i32 = 1;
/// The option that gets an [`accf_stats`].
pub const ACCF_STATS: i32 = 2;

/// The server accepts a connection that is silent until the deadline.
pub const ACCF_ON_TIMEOUT_ACCEPT: u32 = 0;
/// A client that is silent until the deadline gets an RST.
pub const ACCF_ON_TIMEOUT_RESET: u32 = 1;
/// A connection that is silent until the deadline is dropped without a reply.
pub const ACCF_ON_TIMEOUT_DROP: u32 = 2;

/// The listener parks connections.
pub const ACCF_STATE_PARKING: u32 = 0;
/// The listener parks none, and hands over those that are parked.
pub const ACCF_STATE_PAUSED: u32 = 1;

/// The server accepts a connection whose client closes its side without a byte.
pub const ACCF_ON_CLOSE_ACCEPT: u32 = 0;
/// A client that closes its side without a byte gets an RST.
pub const ACCF_ON_CLOSE_RESET: u32 = 1;

/// The number of buckets of [`accf_stats::wait_log2`].
pub const ACCF_WAIT_BUCKETS: usize = 32;
/// The number of sources in [`accf_stats::sources`].
pub const ACCF_SOURCES: usize = 4;

/// The attribute inside `INET_DIAG_ULP_INFO` that holds an [`accf_config`].
pub const ACCF_ULP_INFO_CONFIG: u16 = 0x1AC1;
/// The attribute inside `INET_DIAG_ULP_INFO` that holds an [`accf_stats`].
pub const ACCF_ULP_INFO_STATS: u16 = 0x1AC2;

/// The attribute that describes a socket's upper layer protocol; from `linux/inet_diag.h`.
pub const INET_DIAG_ULP_INFO: u16 = 19;
/// The attribute inside `INET_DIAG_ULP_INFO` that holds the name; from `linux/inet_diag.h`.
pub const INET_ULP_INFO_NAME: u16 = 1;

/// `struct accf_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct accf_config {
    pub timeout_ms: u32,
    pub max_parked: u32,
    pub on_timeout: u32,
    pub state: u32,
    pub on_close: u32,
    pub probe_ms: u32,
}

/// `struct accf_source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct accf_source {
    pub address: [u8; 16],
    pub parked: u64,
}

/// `struct accf_stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct accf_stats {
    pub parked: u64,
    pub half_open: i64,
    pub half_open_young: i64,
    pub parked_total: u64,
    pub released_data: u64,
    pub released_fin: u64,
    pub timeout_accept: u64,
    pub timeout_reset: u64,
    pub timeout_drop: u64,
    pub evicted: u64,
    pub aborted: u64,
    pub fallback: u64,
    pub synack_suppressed: u64,
    pub bypass_syncookie: u64,
    pub bypass_fastopen: u64,
    pub bypass_abort_on_overflow: u64,
    pub bypass_accept_queue_full: u64,
    pub bypass_no_memory: u64,
    pub bypass_namespace_limit: u64,
    pub bypass_signed: u64,
    pub bypass_other: u64,
    pub wait_log2: [u64; ACCF_WAIT_BUCKETS],
    pub released_paused: u64,
    pub bypass_paused: u64,
    pub closed_reset: u64,
    pub closed_reset_unparked: u64,
    pub evicted_greediest: u64,
    pub sources: [accf_source; ACCF_SOURCES],
    pub released_late: u64,
    pub overflow_dropped: u64,
    pub probes: u64,
    pub died: u64,
}

/// Decodes a structure that a module wrote. The module may be older or newer than this crate.
pub fn decode<T: FromBytes + IntoBytes>(bytes: &[u8]) -> T {
    let mut value = T::new_zeroed();
    for (to, from) in value.as_mut_bytes().iter_mut().zip(bytes) {
        *to = *from;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure with different numbers.
    const CONFIG: accf_config = accf_config {
        timeout_ms: 1,
        max_parked: 2,
        on_timeout: 3,
        state: 4,
        on_close: 5,
        probe_ms: 6,
    };

    #[test]
    fn a_short_structure_is_padded_with_zeros() {
        let bytes = CONFIG.as_bytes();
        let short: accf_config = decode(&bytes[..4]);
        let expected = accf_config {
            timeout_ms: 1,
            ..accf_config::default()
        };
        assert_eq!(short, expected);
        assert_eq!(decode::<accf_config>(&[]), accf_config::default());
    }

    #[test]
    fn bytes_beyond_the_structure_are_ignored() {
        let mut bytes = CONFIG.as_bytes().to_vec();
        bytes.extend([9; 8]);
        assert_eq!(decode::<accf_config>(&bytes), CONFIG);
    }

    #[test]
    fn unaligned_bytes_are_decoded() {
        let stats = accf_stats {
            bypass_other: 7,
            ..accf_stats::default()
        };
        let mut bytes = vec![0xff];
        bytes.extend(stats.as_bytes());
        assert_eq!(decode::<accf_stats>(&bytes[1..]), stats);
    }
}
