// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accept filters for TCP listeners, from user space.
//!
//! A listener with the filter [`DATAREADY`] accepts a connection once its first byte, or its end,
//! has arrived. Until then, the kernel module `accf` parks it. This crate attaches the filter,
//! changes its settings and reads its statistics: of the caller's own listeners through their
//! sockets ([`config()`], [`stats()`]), of every process through the kernel's list of sockets
//! ([`listeners()`]).
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
//! println!("{} connections are parked", accf::stats(&listener)?.parked);
//! # Ok(())
//! # }
//! ```
//!
//! # Versions
//!
//! The module may be older or newer than this crate. Fields that an older module does not have are
//! zero; fields that a newer module adds are ignored. [`set_config`] sets the fields that this
//! crate knows, and resets those that a newer module adds to their defaults.
//!
//! # Errors
//!
//! Every function fails with [`Error`]. Its variants name the errnos that they stand for, and its
//! texts say what to do.

pub mod abi;
mod config;
mod error;
mod listeners;
mod module;
mod stats;
mod sys;

use std::os::fd::{AsFd, BorrowedFd};

use zerocopy::IntoBytes;

pub use crate::config::{Config, OnClose, OnTimeout, State};
pub use crate::error::Error;
pub use crate::listeners::{listeners, listeners_on, Listener};
pub use crate::module::module_pinned;
pub use crate::stats::{Source, Stats, WaitBucket, SOURCES, WAIT_BUCKETS};

/// The filter that parks a connection until its first byte, or its end, arrives.
pub const DATAREADY: &str = "dataready";

/// The size of the name of an upper layer protocol, with a final zero byte (`TCP_ULP_NAME_MAX`).
const NAME_MAX: usize = 16;

/// Attaches the filter `name` to a TCP socket that listens, or is about to:
/// `setsockopt(IPPROTO_TCP, TCP_ULP)`.
///
/// The filter stays until the socket is closed. The kernel loads the module if it is installed and
/// the caller has `CAP_NET_ADMIN`.
///
/// # Errors
///
/// * [`Error::NoSuchFilter`] (`ENOENT`): the module is not loaded.
/// * [`Error::AlreadyAttached`] (`EEXIST`): the socket already has a filter.
/// * [`Error::WrongSocket`] (`EOPNOTSUPP`, `ENOTCONN`): the socket is connected, or carries SMC or
///   another owner's data.
/// * [`Error::Mptcp`] (`ENOPROTOOPT`): the socket is an MPTCP socket, as the listeners of Go
///   programs are by default.
/// * [`Error::NotTcp`] (`ENOPROTOOPT`), [`Error::InvalidName`], [`Error::Os`].
pub fn attach(socket: impl AsFd, name: &str) -> Result<(), Error> {
    // The kernel would truncate a longer name.
    if name.is_empty() || name.len() >= NAME_MAX || name.contains('\0') {
        return Err(Error::InvalidName {
            name: name.to_owned(),
        });
    }
    let socket = socket.as_fd();
    sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, name.as_bytes())
        .map_err(|error| Error::attach(name, error, protocol(socket)))
}

/// Returns a socket's protocol, such as `IPPROTO_TCP`, if the kernel says.
fn protocol(socket: BorrowedFd<'_>) -> Option<i32> {
    let mut number = 0;
    sys::get_option(
        socket,
        libc::SOL_SOCKET,
        libc::SO_PROTOCOL,
        number.as_mut_bytes(),
    )
    .ok()?;
    Some(number)
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
    // Fields that an older module does not write stay zero.
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
/// The change takes effect at once, also for connections that are already parked. The call sets all
/// settings: to change one, start from what [`config()`] returns.
///
/// # Errors
///
/// * [`Error::NoFilter`] (`ENOPROTOOPT`): the socket has no filter.
/// * [`Error::TimeoutOutOfRange`]: the timeout is zero, or more than 2^32 - 1 ms.
/// * [`Error::InvalidSetting`] (`EINVAL`): the module does not know this `on_timeout`, `state` or
///   `on_close`.
/// * [`Error::TooManyParked`] (`EPERM`): `max_parked` is above the module's default, and the caller
///   lacks `CAP_NET_ADMIN`.
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

/// Stops parking at a listener, until [`resume()`]: sets [`Config::state`] to [`State::Paused`],
/// and no other setting.
///
/// `accept()` then returns new connections as on a listener without a filter, and those that are
/// parked, the oldest first.
///
/// # Errors
///
/// Those of [`config()`] and [`set_config()`]. [`Error::ModuleTooOld`] (`E2BIG`): the module cannot
/// pause.
pub fn pause(socket: impl AsFd) -> Result<(), Error> {
    set_state(socket.as_fd(), State::Paused)
}

/// Parks connections again at a listener that [`pause()`] has stopped.
///
/// # Errors
///
/// Those of [`config()`] and [`set_config()`].
pub fn resume(socket: impl AsFd) -> Result<(), Error> {
    set_state(socket.as_fd(), State::Parking)
}

/// Changes the state and keeps the other settings.
fn set_state(socket: BorrowedFd<'_>, state: State) -> Result<(), Error> {
    let config = Config {
        state,
        ..config(socket)?
    };
    set_config(socket, &config)
}

/// Returns the statistics of a socket's filter: `getsockopt(SOL_ACCF, ACCF_STATS)`.
///
/// # Errors
///
/// [`Error::NoFilter`] (`ENOPROTOOPT`), [`Error::Os`].
pub fn stats(socket: impl AsFd) -> Result<Stats, Error> {
    let mut raw = abi::accf_stats::default();
    // Fields that an older module does not write stay zero.
    sys::get_option(
        socket.as_fd(),
        abi::SOL_ACCF,
        abi::ACCF_STATS,
        raw.as_mut_bytes(),
    )
    .map_err(|error| Error::option("read the accept filter's statistics", error))?;
    Ok(Stats::from_abi(&raw))
}
