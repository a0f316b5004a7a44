// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accept filters of TCP listeners, for user space.
//!
//! A listener with the filter [`DATAREADY`] accepts a connection once its first byte, or its end,
//! has arrived. The kernel module `accf` does that; this crate asks for it, sets it up, and reads
//! what it has counted: of one's own listeners through the socket ([`config()`], [`stats()`]), of any
//! process's through the kernel's list of sockets ([`listeners()`]).
//!
//! ```no_run
//! use std::net::TcpListener;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = TcpListener::bind("[::]:8080")?;
//! accf::attach(&listener, accf::DATAREADY)?;
//!
//! let mut config = accf::config(&listener)?;
//! config.timeout = Some(Duration::from_secs(30));
//! config.on_timeout = accf::OnTimeout::Reset;
//! accf::set_config(&listener, &config)?;
//!
//! println!("{} clients think", accf::stats(&listener)?.parked);
//! # Ok(())
//! # }
//! ```
//!
//! # Versions
//!
//! The module may be older or newer than this crate. What an older one does not tell counts as zero;
//! what a newer one tells in addition is left out. [`set_config`] sets only what this crate knows,
//! and what a newer module knows besides returns to its default.
//!
//! # Errors
//!
//! Every function fails with [`Error`], whose variants name the errnos they stand for, and whose
//! texts say what to do.

pub mod abi;
mod config;
mod error;
mod listeners;
mod stats;
mod sys;

use std::os::fd::AsFd;

use zerocopy::IntoBytes;

pub use crate::config::{Config, OnTimeout};
pub use crate::error::Error;
pub use crate::listeners::{listeners, listeners_on, Listener};
pub use crate::stats::{Stats, WaitBucket, WAIT_BUCKETS};

/// The filter that holds a connection back until its first byte, or its end, is there.
pub const DATAREADY: &str = "dataready";

/// The room for a name of an upper layer protocol, with a final zero byte (`TCP_ULP_NAME_MAX`).
const NAME_MAX: usize = 16;

/// Attaches the filter `name` to a TCP socket that listens, or is about to:
/// `setsockopt(IPPROTO_TCP, TCP_ULP)`.
///
/// It stays until the socket is closed. The kernel loads the module by itself if it is installed,
/// and the caller has `CAP_NET_ADMIN`.
///
/// # Errors
///
/// * [`Error::NoSuchFilter`] (`ENOENT`): the module is not loaded.
/// * [`Error::AlreadyAttached`] (`EEXIST`): the socket has a filter already.
/// * [`Error::WrongSocket`] (`EOPNOTSUPP`, `ENOTCONN`): the socket is connected, or carries MPTCP or
///   SMC.
/// * [`Error::NotTcp`] (`ENOPROTOOPT`), [`Error::InvalidName`], [`Error::Os`].
pub fn attach(socket: impl AsFd, name: &str) -> Result<(), Error> {
    // The kernel would cut a longer name off.
    if name.is_empty() || name.len() >= NAME_MAX || name.contains('\0') {
        return Err(Error::InvalidName {
            name: name.to_owned(),
        });
    }
    sys::set_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_ULP,
        name.as_bytes(),
    )
    .map_err(|error| Error::attach(name, error))
}

/// Returns the name of the filter, or of another upper layer protocol, that a TCP socket has.
///
/// # Errors
///
/// [`Error::NotTcp`] (`ENOPROTOOPT`), [`Error::Os`].
pub fn attached(socket: impl AsFd) -> Result<Option<String>, Error> {
    let mut name = [0; NAME_MAX];
    let length = sys::get_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_ULP, &mut name)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Error::NotTcp,
            _ => Error::Os {
                doing: "read the name of the accept filter",
                source,
            },
        })?;
    let text = name.get(..length).unwrap_or(&name);
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned()))
}

/// Returns the settings of a socket's filter: `getsockopt(SOL_ACCF, ACCF_CONFIG)`.
///
/// # Errors
///
/// [`Error::NoFilter`] (`ENOPROTOOPT`), [`Error::Os`].
pub fn config(socket: impl AsFd) -> Result<Config, Error> {
    let mut raw = abi::accf_config::default();
    // What an older module leaves untouched stays zero.
    sys::get_option(
        socket.as_fd(),
        abi::SOL_ACCF,
        abi::ACCF_CONFIG,
        raw.as_mut_bytes(),
    )
    .map_err(|error| Error::option("read the accept filter's settings", error))?;
    Ok(Config::from_abi(&raw))
}

/// Changes the settings of a socket's filter: `setsockopt(SOL_ACCF, ACCF_CONFIG)`.
///
/// It takes effect at once, also for the connections that are parked. All settings are set: to
/// change one, begin with those that [`config()`] returns.
///
/// # Errors
///
/// * [`Error::NoFilter`] (`ENOPROTOOPT`): attach one first.
/// * [`Error::TimeoutOutOfRange`]: zero, or more than 2^32 - 1 ms; the kernel is not asked.
/// * [`Error::InvalidSetting`] (`EINVAL`): the module does not know this `on_timeout`.
/// * [`Error::TooManyParked`] (`EPERM`): more than the module's default takes `CAP_NET_ADMIN`.
/// * [`Error::ModuleTooOld`] (`E2BIG`), [`Error::Os`].
pub fn set_config(socket: impl AsFd, config: &Config) -> Result<(), Error> {
    let raw = config.to_abi()?;
    sys::set_option(
        socket.as_fd(),
        abi::SOL_ACCF,
        abi::ACCF_CONFIG,
        raw.as_bytes(),
    )
    .map_err(|error| Error::option("change the accept filter's settings", error))
}

/// Returns what a socket's filter has counted: `getsockopt(SOL_ACCF, ACCF_STATS)`.
///
/// # Errors
///
/// [`Error::NoFilter`] (`ENOPROTOOPT`), [`Error::Os`].
pub fn stats(socket: impl AsFd) -> Result<Stats, Error> {
    let mut raw = abi::accf_stats::default();
    // What an older module leaves untouched stays zero.
    sys::get_option(
        socket.as_fd(),
        abi::SOL_ACCF,
        abi::ACCF_STATS,
        raw.as_mut_bytes(),
    )
    .map_err(|error| Error::option("read the accept filter's statistics", error))?;
    Ok(Stats::from_abi(&raw))
}
