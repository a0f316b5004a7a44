// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a program needs that tests TCP from the inside of a machine it may do anything with.
//!
//! | to | use |
//! | --- | --- |
//! | ask for an accept filter, and read it back | [`ulp`] |
//! | have a machine room of one's own | [`netns`], [`wire`] |
//! | open listeners for IPv4, IPv6 and both | [`endpoint`] |
//! | see what is on the wire | [`capture`], [`segment`] |
//! | speak TCP segment by segment, with no kernel in between | [`raw`] |
//! | see what the kernel thinks | [`tcp_info`], [`counters`], [`sockets`] |
//! | load and unload the module | [`module`] |
//! | encrypt in the kernel | [`ktls`] |
//!
//! Everything runs as root, and changes nothing outside the namespaces it makes, except for [`module`].
//! All points in time are [`clock::Stamp`]s, so those of packets and of system calls can be compared.

pub mod capture;
pub mod clock;
pub mod counters;
pub mod endpoint;
pub mod ktls;
mod link;
pub mod module;
pub mod netns;
pub mod raw;
pub mod segment;
pub mod sockets;
mod sys;
pub mod tcp_info;
pub mod ulp;
pub mod wait;
pub mod wire;
