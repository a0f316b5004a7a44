// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong, and what to do about it.

use std::io;
use std::time::Duration;

use netlink_packet_core::DecodeError;

/// What went wrong. Its text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `ENOENT` of `TCP_ULP`: nobody offers a filter of that name.
    #[error(
        "there is no accept filter `{name}`: load the module (insmod accf.ko); \
         /proc/sys/net/ipv4/tcp_available_ulp lists the names that there are"
    )]
    NoSuchFilter {
        /// The name that was asked for.
        name: String,
    },

    /// The name is empty, longer than 15 bytes, or has a zero byte: no filter can have it.
    #[error("`{name}` cannot be the name of an accept filter: it takes 1 to 15 bytes, none of them zero")]
    InvalidName {
        /// The name that was asked for.
        name: String,
    },

    /// `EEXIST` of `TCP_ULP`: the socket has a filter, or another upper layer protocol, already.
    #[error(
        "the socket has an upper layer protocol already, this filter or another one: \
         attach once, and not to a socket that does TLS in the kernel"
    )]
    AlreadyAttached,

    /// `EOPNOTSUPP` and `ENOTCONN` of `TCP_ULP`: the socket is of the wrong kind, or in the wrong
    /// state.
    #[error(
        "the socket cannot have an accept filter: it is connected, or carries MPTCP or SMC; \
         ask on a plain TCP socket that listens, or is about to"
    )]
    WrongSocket,

    /// `ENOPROTOOPT` of `TCP_ULP`: this is no TCP socket, or the kernel is too old.
    #[error("the socket knows no upper layer protocols: it is not a TCP socket, or its kernel is too old")]
    NotTcp,

    /// `ENOPROTOOPT` of `ACCF_CONFIG` and `ACCF_STATS`, `EOPNOTSUPP` where IPv4 answers itself: the
    /// socket has no filter.
    #[error("the socket has no accept filter: attach one first")]
    NoFilter,

    /// `E2BIG` of `ACCF_CONFIG`: something is set that the module does not know yet.
    #[error(
        "the loaded module is older than this program, and does not know a setting that was given: \
         leave it at its default, or load a newer module"
    )]
    ModuleTooOld,

    /// `EINVAL` of `ACCF_CONFIG`: a value that the module does not allow.
    #[error("the module does not allow one of the settings: on_timeout must be one that it knows")]
    InvalidSetting,

    /// `EPERM` of `ACCF_CONFIG`: more than the module's default is for who has `CAP_NET_ADMIN`.
    #[error(
        "to hold back more connections than the module's parameter max_parked says takes \
         CAP_NET_ADMIN in the network namespace: ask for fewer, or load the module with more"
    )]
    TooManyParked,

    /// The timeout has no representation, which is 1 to 4,294,967,295 whole milliseconds.
    #[error(
        "a timeout of {0:?} cannot be set: it takes 1 ms to 4294967.295 s (49 days), \
         or none at all to wait until the client sends"
    )]
    TimeoutOutOfRange(Duration),

    /// The kernel lists no TCP sockets (`ENOENT`, `EPROTONOSUPPORT`).
    #[error("the kernel does not list TCP sockets: load its modules inet_diag and tcp_diag")]
    NoSockDiag,

    /// The module says nothing about a listener that has one of its filters.
    #[error(
        "the listener on {address} has the filter `{filter}`, but the loaded module says nothing \
         about it: it is older than this program; load a newer one"
    )]
    NoDetails {
        /// The listener's filter.
        filter: String,
        /// The listener's address.
        address: std::net::SocketAddr,
    },

    /// The kernel's list of TCP sockets cannot be understood.
    #[error("cannot understand the kernel's list of TCP sockets")]
    Malformed(#[from] DecodeError),

    /// Anything else that the kernel refuses, such as a permission (`EPERM`).
    #[error("cannot {doing}")]
    Os {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Returns the errno that the kernel gave for this error; none for those that were found before
    /// the kernel was asked. Of errnos that are told by one error, it is the usual one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NoSuchFilter { .. } | Self::NoSockDiag => Some(libc::ENOENT),
            Self::AlreadyAttached => Some(libc::EEXIST),
            Self::WrongSocket => Some(libc::EOPNOTSUPP),
            Self::NotTcp | Self::NoFilter => Some(libc::ENOPROTOOPT),
            Self::ModuleTooOld => Some(libc::E2BIG),
            Self::InvalidSetting => Some(libc::EINVAL),
            Self::TooManyParked => Some(libc::EPERM),
            Self::Os { source, .. } => source.raw_os_error(),
            Self::InvalidName { .. }
            | Self::TimeoutOutOfRange(_)
            | Self::NoDetails { .. }
            | Self::Malformed(_) => None,
        }
    }

    /// Says why a filter could not be attached.
    pub(crate) fn attach(name: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT) => Self::NoSuchFilter {
                name: name.to_owned(),
            },
            Some(libc::EEXIST) => Self::AlreadyAttached,
            Some(libc::EOPNOTSUPP | libc::ENOTCONN) => Self::WrongSocket,
            Some(libc::ENOPROTOOPT) => Self::NotTcp,
            _ => Self::Os {
                doing: "attach an accept filter",
                source,
            },
        }
    }

    /// Says why an option of the filter could not be read or set.
    pub(crate) fn option(doing: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            // The latter is what IPv4, and sockets of other kinds, say to a level that they do not know.
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Self::NoFilter,
            Some(libc::E2BIG) => Self::ModuleTooOld,
            Some(libc::EINVAL) => Self::InvalidSetting,
            Some(libc::EPERM) => Self::TooManyParked,
            _ => Self::Os { doing, source },
        }
    }

    /// Says why the kernel does not list sockets.
    pub(crate) fn diag(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::EPROTONOSUPPORT) => Self::NoSockDiag,
            _ => Self::Os {
                doing: "read the kernel's list of TCP sockets",
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of the kernel.
    fn os(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn errnos_round_trip() {
        for errno in [
            libc::ENOENT,
            libc::EEXIST,
            libc::EOPNOTSUPP,
            libc::ENOPROTOOPT,
            libc::EPERM,
        ] {
            assert_eq!(Error::attach("dataready", os(errno)).errno(), Some(errno));
        }
        for errno in [
            libc::ENOPROTOOPT,
            libc::E2BIG,
            libc::EINVAL,
            libc::EPERM,
            libc::EFAULT,
        ] {
            assert_eq!(Error::option("do it", os(errno)).errno(), Some(errno));
        }
        for errno in [libc::ENOENT, libc::EPERM] {
            assert_eq!(Error::diag(os(errno)).errno(), Some(errno));
        }
    }

    #[test]
    fn a_missing_filter_is_named() {
        let text = Error::attach("tlsready", os(libc::ENOENT)).to_string();
        assert!(text.contains("`tlsready`") && text.contains("load the module"));
    }
}
