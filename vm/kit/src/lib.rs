// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tools to test TCP from the inside of a machine that the test owns.
//!
//! | to | use |
//! | --- | --- |
//! | ask for an accept filter, and read it back | [`ulp`] |
//! | change its settings, and read what it counted | [`control`] |
//! | check that its counts add up | [`account`] |
//! | make network namespaces, and wires between them | [`netns`], [`wire`] |
//! | open listeners for IPv4, IPv6 and both | [`endpoint`] |
//! | pass invalid input to the kernel, by system calls and by the wire | [`memory`], [`forge`] |
//! | capture what is on the wire | [`capture`], [`segment`] |
//! | speak TCP segment by segment, with no kernel in between | [`raw`] |
//! | do the same for thousands of clients on one thread | [`tun_clients`] |
//! | run clients of every kind, and check what became of them | [`clients`] |
//! | serve them | [`server`] |
//! | do so with listeners of all settings, over a wire that loses packets | [`impaired_wire`] |
//! | read the kernel's state | [`tcp_info`], [`counters`], [`sockets`], [`packet_options`] |
//! | see when data was received | [`rx_stamps`] |
//! | count instructions instead of time | [`count`] |
//! | see how much memory the kernel uses, and have it run out | [`slab`], [`fault`] |
//! | load and unload the module | [`module`] |
//! | set up a virtual server | [`ipvs`] |
//! | load BPF programs | [`bpf`] |
//! | sign segments | [`signature`] |
//! | encrypt in the kernel | [`ktls`] |
//! | send without a copy | [`zerocopy`] |
//!
//! Everything runs as root, and changes nothing outside the namespaces it makes, except for
//! [`module`]. All points in time are [`clock::Stamp`]s, so those of packets and of system calls
//! can be compared.

pub mod account;
pub mod bpf;
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
mod genl;
pub mod impaired_wire;
pub mod ipvs;
pub mod ktls;
mod link;
mod marks;
pub mod memory;
pub mod module;
pub mod netns;
pub mod packet_options;
mod plug;
pub mod raw;
pub mod rx_stamps;
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
pub mod zerocopy;
