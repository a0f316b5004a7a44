// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a program needs that tests TCP from the inside of a machine it may do anything with.
//!
//! | to | use |
//! | --- | --- |
//! | ask for an accept filter, and read it back | [`ulp`] |
//! | change its settings, and read what it counted | [`control`] |
//! | know that its counts add up | [`account`] |
//! | have a machine room of one's own | [`netns`], [`wire`] |
//! | open listeners for IPv4, IPv6 and both | [`endpoint`] |
//! | pass to the kernel what nobody should, by system calls and by the wire | [`memory`], [`forge`] |
//! | see what is on the wire | [`capture`], [`segment`] |
//! | speak TCP segment by segment, with no kernel in between | [`raw`] |
//! | be thousands of clients | [`tun_clients`] |
//! | have clients of every kind, and know what must become of them | [`clients`] |
//! | serve them | [`server`] |
//! | have them meet listeners of all settings, in trouble | [`impaired_wire`] |
//! | see what the kernel thinks | [`tcp_info`], [`counters`], [`sockets`] |
//! | count instructions instead of time | [`count`] |
//! | see how much memory the kernel uses, and have it run out | [`slab`], [`fault`] |
//! | load and unload the module | [`module`] |
//! | sign segments | [`signature`] |
//! | encrypt in the kernel | [`ktls`] |
//!
//! Everything runs as root, and changes nothing outside the namespaces it makes, except for [`module`].
//! All points in time are [`clock::Stamp`]s, so those of packets and of system calls can be compared.

pub mod account;
pub mod capture;
pub mod clients;
pub mod clock;
pub mod control;
pub mod count;
pub mod counters;
pub mod endpoint;
mod exchange;
pub mod fault;
pub mod forge;
pub mod impaired_wire;
pub mod ktls;
mod link;
mod marks;
pub mod memory;
pub mod module;
pub mod netns;
pub mod raw;
pub mod segment;
pub mod server;
pub mod signature;
pub mod slab;
pub mod sockets;
mod sys;
pub mod tcp_info;
pub mod tun_clients;
pub mod ulp;
pub mod wait;
pub mod wire;
