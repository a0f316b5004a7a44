// SPDX-License-Identifier: MIT OR Apache-2.0

//! Upper-layer protocols of a TCP socket: how a listener asks for an accept filter.

use std::io;
use std::os::fd::AsFd;

use nix::libc;

use crate::sys;

/// The accept filter that parks a connection until its first byte arrives.
pub const DATAREADY: &str = "dataready";

/// Attaches the upper-layer protocol `name` to a TCP socket: `setsockopt(IPPROTO_TCP, TCP_ULP)`.
///
/// The errno is the message: `ENOENT` no ULP has this name, `EEXIST` the socket has one already,
/// `ENOTCONN` or `EOPNOTSUPP` the socket is not of the kind or in the state it takes.
pub fn attach(socket: impl AsFd, name: &str) -> io::Result<()> {
    sys::set_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_ULP,
        name.as_bytes(),
    )
}

/// Returns the name of the upper-layer protocol attached to a TCP socket, if there is one.
pub fn attached(socket: impl AsFd) -> io::Result<Option<String>> {
    // TCP_ULP_NAME_MAX is 16, with the final zero byte.
    let mut name = [0u8; 16];
    let len = sys::get_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_ULP, &mut name)?;
    let text: String = name
        .iter()
        .take(len)
        .take_while(|byte| **byte != 0)
        .map(|byte| char::from(*byte))
        .collect();
    Ok(if text.is_empty() { None } else { Some(text) })
}

/// Returns the names this kernel offers: `net.ipv4.tcp_available_ulp`.
///
/// The file is the first namespace's, so this does not work from inside another one.
pub fn available() -> io::Result<Vec<String>> {
    let names = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp")?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}
