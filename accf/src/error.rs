// SPDX-License-Identifier: MIT OR Apache-2.0
//! The errors of this crate, and what to do about each.

use std::io;
use std::time::Duration;

use netlink_packet_core::DecodeError;

/// An error. Its text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `ENOENT` of `TCP_ULP`: no loaded module has a filter of that name.
    #[error(
        "there is no accept filter `{name}`: load the module (insmod accf.ko); \
         /proc/sys/net/ipv4/tcp_available_ulp lists the names that exist"
    )]
    NoSuchFilter {
        /// The name that was asked for.
        name: String,
    },

    /// The name is empty, longer than 15 bytes, or has a zero byte: no filter can have it.
    #[error(
        "`{name}` cannot be the name of an accept filter: \
         a name has 1 to 15 bytes, none of them zero"
    )]
    InvalidName {
        /// The name that was asked for.
        name: String,
    },

    /// `EEXIST` of `TCP_ULP`: the socket already has a filter or another upper layer protocol.
    #[error(
        "the socket already has an upper layer protocol, this filter or another one: \
         attach once, and not to a socket that uses kernel TLS"
    )]
    AlreadyAttached,

    /// `EOPNOTSUPP` and `ENOTCONN` of `TCP_ULP`: the socket is of the wrong kind, or in the wrong
    /// state.
    #[error(
        "the socket cannot have an accept filter: it is connected, or carries SMC or the data of \
         another owner; attach to a plain TCP socket that listens, or is about to"
    )]
    WrongSocket,

    /// `ENOPROTOOPT` of `TCP_ULP` on an MPTCP socket, which supports no upper layer protocols.
    ///
    /// Go programs create MPTCP listeners by default since Go 1.24.
    #[error(
        "an MPTCP socket cannot have an accept filter: make the server listen with plain TCP \
         (Go programs: set GODEBUG=multipathtcp=0), or turn MPTCP off \
         (sysctl net.mptcp.enabled=0), and restart the server"
    )]
    Mptcp,

    /// `ENOPROTOOPT` of `TCP_ULP` on any other socket: it is not a TCP socket, or the kernel is too
    /// old for upper layer protocols.
    #[error(
        "the socket knows no upper layer protocols: \
         it is not a TCP socket, or its kernel is too old"
    )]
    NotTcp,

    /// `ENOPROTOOPT` of `ACCF_CONFIG` and `ACCF_STATS`, or `EOPNOTSUPP` of `getsockopt()` on an
    /// IPv4 socket: the socket has no filter.
    #[error("the socket has no accept filter: attach one first")]
    NoFilter,

    /// `E2BIG` of `ACCF_CONFIG`: a setting that the module does not know is not zero.
    #[error(
        "the loaded module is older than this program and does not know one of the settings: \
         leave it at its default, or load a newer module"
    )]
    ModuleTooOld,

    /// `EINVAL` of `ACCF_CONFIG`: the module does not allow a value.
    #[error(
        "the module does not allow one of the settings: \
         on_timeout, state and on_close must be ones that it knows"
    )]
    InvalidSetting,

    /// `EPERM` of `ACCF_CONFIG`: a `max_parked` above the module's default takes `CAP_NET_ADMIN`.
    #[error(
        "to park more connections than the module's parameter max_parked takes CAP_NET_ADMIN \
         in the network namespace: set fewer, or load the module with a larger max_parked"
    )]
    TooManyParked,

    /// The timeout is not 1 to 4,294,967,295 whole milliseconds.
    #[error(
        "a time of {0:?} cannot be set: set 1 ms to 4294967.295 s (49 days), or none: no timeout \
         is to wait until the client sends, no time for probes to leave them to SO_KEEPALIVE"
    )]
    TimeoutOutOfRange(Duration),

    /// The kernel does not list TCP sockets (`ENOENT`, `EPROTONOSUPPORT`).
    #[error("the kernel does not list TCP sockets: load its modules inet_diag and tcp_diag")]
    NoSockDiag,

    /// The module returned no details of a listener that has one of its filters.
    #[error(
        "the listener on {address} has the filter `{filter}`, but the loaded module returns no \
         details of it: the module is older than this program; load a newer one"
    )]
    NoDetails {
        /// The listener's filter.
        filter: String,
        /// The listener's address.
        address: std::net::SocketAddr,
    },

    /// The kernel's list of TCP sockets cannot be decoded.
    #[error("cannot decode the kernel's list of TCP sockets")]
    Malformed(#[from] DecodeError),

    /// The module's parameter `pinned` is neither `Y` nor `N`.
    #[error(
        "/sys/module/accf/parameters/pinned is `{value}`, neither Y nor N: \
         a newer module takes a newer version of this program"
    )]
    UnknownPinned {
        /// The value, without the end of the line.
        value: String,
    },

    /// Any other error of the kernel, such as a missing permission (`EPERM`).
    #[error("cannot {doing}")]
    Os {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Returns the errno that the kernel gave, or `None` for an error that this crate found itself.
    /// If a variant stands for several errnos, returns the usual one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NoSuchFilter { .. } | Self::NoSockDiag => Some(libc::ENOENT),
            Self::AlreadyAttached => Some(libc::EEXIST),
            Self::WrongSocket => Some(libc::EOPNOTSUPP),
            Self::Mptcp | Self::NotTcp | Self::NoFilter => Some(libc::ENOPROTOOPT),
            Self::ModuleTooOld => Some(libc::E2BIG),
            Self::InvalidSetting => Some(libc::EINVAL),
            Self::TooManyParked => Some(libc::EPERM),
            Self::Os { source, .. } => source.raw_os_error(),
            Self::InvalidName { .. }
            | Self::TimeoutOutOfRange(_)
            | Self::NoDetails { .. }
            | Self::UnknownPinned { .. }
            | Self::Malformed(_) => None,
        }
    }

    /// Converts the error of attaching the filter `name` to a socket of `protocol` (`SO_PROTOCOL`).
    ///
    /// The protocol tells an MPTCP socket (`mptcp_setsockopt()`) from others that return
    /// `ENOPROTOOPT`.
    pub(crate) fn attach(name: &str, source: io::Error, protocol: Option<i32>) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT) => Self::NoSuchFilter {
                name: name.to_owned(),
            },
            Some(libc::EEXIST) => Self::AlreadyAttached,
            Some(libc::EOPNOTSUPP | libc::ENOTCONN) => Self::WrongSocket,
            Some(libc::ENOPROTOOPT) if protocol == Some(libc::IPPROTO_MPTCP) => Self::Mptcp,
            Some(libc::ENOPROTOOPT) => Self::NotTcp,
            _ => Self::Os {
                doing: "attach an accept filter",
                source,
            },
        }
    }

    /// Converts the error of reading or setting an option of the filter.
    pub(crate) fn option(doing: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            // IPv4 and sockets of other protocols return EOPNOTSUPP for an unknown level.
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Self::NoFilter,
            Some(libc::E2BIG) => Self::ModuleTooOld,
            Some(libc::EINVAL) => Self::InvalidSetting,
            Some(libc::EPERM) => Self::TooManyParked,
            _ => Self::Os { doing, source },
        }
    }

    /// Converts the error of listing sockets.
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

    /// Returns an error of the kernel.
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
            for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_MPTCP] {
                let error = Error::attach("dataready", os(errno), Some(protocol));
                assert_eq!(error.errno(), Some(errno));
            }
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
        let text = Error::attach("tlsready", os(libc::ENOENT), None).to_string();
        assert!(text.contains("`tlsready`") && text.contains("load the module"));
    }

    #[test]
    fn an_mptcp_socket_is_told_from_others() {
        let attach = |errno, protocol| Error::attach("dataready", os(errno), protocol);
        let error = attach(libc::ENOPROTOOPT, Some(libc::IPPROTO_MPTCP));
        assert!(matches!(error, Error::Mptcp), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("GODEBUG=multipathtcp=0"), "{text}");
        assert!(text.contains("sysctl net.mptcp.enabled=0"), "{text}");
        for protocol in [Some(libc::IPPROTO_TCP), Some(libc::IPPROTO_UDP), None] {
            let error = attach(libc::ENOPROTOOPT, protocol);
            assert!(matches!(error, Error::NotTcp), "{error:?}");
        }
        // Any other errno is not about MPTCP, whatever the socket is.
        let error = attach(libc::EOPNOTSUPP, Some(libc::IPPROTO_MPTCP));
        assert!(matches!(error, Error::WrongSocket), "{error:?}");
    }
}
