// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads and sets socket options as bytes: the only `unsafe` code of this crate.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads a socket option into `value` and returns how many bytes the kernel wrote.
pub(crate) fn get_option(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut len = length(value)?;
    // SAFETY:
    // - `value` is an exclusive borrow of `len` writable bytes, the kernel writes at most `len`
    //   bytes, and every value is valid for a byte;
    // - `len` is a local variable, which the kernel may overwrite;
    // - The descriptor stays open while it is borrowed.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    // At most the size of `value`, even if the kernel returned more.
    Ok(usize::try_from(len).map_or(value.len(), |len| len.min(value.len())))
}

/// Sets a socket option to `value`.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    let len = length(value)?;
    // SAFETY:
    // - `value` is a borrow of `len` readable bytes, which the kernel only reads;
    // - The descriptor stays open while it is borrowed.
    let status =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns the length of an option's value in the type that the system calls take.
fn length(value: &[u8]) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
