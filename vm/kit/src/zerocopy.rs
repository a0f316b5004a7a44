// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sending without a copy, by `io_uring`.

use std::io;
use std::os::fd::AsFd;

use crate::sys;
pub use crate::sys::ZeroCopySent;

/// Sends `bytes` on a connection by `IORING_OP_SEND_ZC`, and waits until the kernel has released
/// them.
///
/// The errno is the message: `EOPNOTSUPP` the socket does not send without a copy, `ENOSYS` or
/// `EPERM` there is no `io_uring`.
pub fn send(socket: impl AsFd, bytes: &'static [u8]) -> io::Result<ZeroCopySent> {
    sys::send_zero_copy(socket.as_fd(), bytes)
}
