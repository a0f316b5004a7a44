// SPDX-License-Identifier: MIT OR Apache-2.0

//! Signed segments: TCP-MD5 (RFC 2385) and TCP-AO (RFC 5925), for both ends of a connection.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use nix::libc;

use crate::sys;

const TCP_MD5SIG: i32 = 14;
const TCP_AO_ADD_KEY: i32 = 38;
const ADDRESS_SIZE: usize = 128;
const KEY_SIZE: usize = 80;

/// `struct sockaddr_storage` with an address and no port.
fn storage(peer: IpAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ADDRESS_SIZE);
    match peer {
        IpAddr::V4(ip) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend([0; 6]);
            bytes.extend(ip.octets());
        }
    }
    bytes.resize(ADDRESS_SIZE, 0);
    bytes
}

/// Returns a key, and zeros behind it.
fn padded(key: &[u8]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    bytes.resize(KEY_SIZE, 0);
    bytes
}

/// Signs what is sent to `peer`, and wants what comes from it to be signed, by TCP-MD5.
///
/// `ENOPROTOOPT` says that the kernel has no such thing.
pub fn md5(socket: impl AsFd, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    // struct tcp_md5sig: address, flags, prefix length, length of the key, interface, key.
    let mut bytes = storage(peer);
    bytes.extend([0; 2]);
    bytes.extend((key.len() as u16).to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(padded(key));
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, TCP_MD5SIG, &bytes)
}

/// The same by TCP-AO, with one key of the number 100 in both directions.
pub fn ao(socket: impl AsFd, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    const NUMBER: u8 = 100;
    const ALGORITHM: &[u8] = b"hmac(sha1)";
    const ALGORITHM_SIZE: usize = 64;
    let prefix = match peer {
        IpAddr::V4(_) => 32,
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => 32,
        IpAddr::V6(_) => 128,
    };
    // struct tcp_ao_add: address, algorithm, interface, flags (set_current, set_rnext), reserved,
    // prefix length, the key's two numbers, length of the signature (0: usual), key flags, length
    // of the key, key.
    let mut bytes = storage(peer);
    let mut algorithm = ALGORITHM.to_vec();
    algorithm.resize(ALGORITHM_SIZE, 0);
    bytes.extend(algorithm);
    bytes.extend([0; 4]);
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend([prefix, NUMBER, NUMBER, 0, 0, key.len() as u8]);
    bytes.extend(padded(key));
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, TCP_AO_ADD_KEY, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    #[test]
    fn addresses_are_laid_out_as_the_kernel_wants_them() {
        let v4 = storage(Ipv4Addr::new(1, 2, 3, 4).into());
        assert_eq!((v4.len(), &v4[4..8]), (128, &[1, 2, 3, 4][..]));
        let v6 = storage(Ipv6Addr::LOCALHOST.into());
        assert_eq!((v6.len(), v6[23]), (128, 1));
    }

    #[test]
    fn the_kernel_takes_a_key_or_has_no_such_thing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = Ipv4Addr::LOCALHOST.into();
        if let Err(error) = md5(&listener, peer, b"secret") {
            assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}");
        }
    }
}
