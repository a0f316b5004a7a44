// SPDX-License-Identifier: MIT OR Apache-2.0

//! TLS in the kernel, with a key of the test's own: enough to see that it attaches and encrypts.

use std::io;
use std::os::fd::AsFd;

use nix::libc;

use crate::{sys, ulp};

/// One direction's key material for AES-128-GCM in TLS 1.2.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The explicit part of the nonce.
    pub iv: [u8; 8],
    /// The key.
    pub key: [u8; 16],
    /// The implicit part of the nonce.
    pub salt: [u8; 4],
}

/// Which direction of a connection the kernel is to handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It encrypts what is written.
    Send,
    /// It decrypts what is read.
    Receive,
}

/// Attaches the kernel's TLS to an established connection.
pub fn attach(socket: impl AsFd) -> io::Result<()> {
    ulp::attach(socket, "tls")
}

/// Gives the kernel the key of one direction; records count from 0.
pub fn set_key(socket: impl AsFd, side: Side, key: &Key) -> io::Result<()> {
    // struct tls12_crypto_info_aes_gcm_128: version, cipher, iv, key, salt, record sequence number.
    let mut info = Vec::with_capacity(40);
    info.extend(libc::TLS_1_2_VERSION.to_ne_bytes());
    info.extend(libc::TLS_CIPHER_AES_GCM_128.to_ne_bytes());
    info.extend(key.iv);
    info.extend(key.key);
    info.extend(key.salt);
    info.extend([0; 8]);
    let name = match side {
        Side::Send => libc::TLS_TX,
        Side::Receive => libc::TLS_RX,
    };
    sys::set_option(socket.as_fd(), libc::SOL_TLS, name, &info)
}
