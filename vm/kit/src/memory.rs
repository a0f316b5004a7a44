// SPDX-License-Identifier: MIT OR Apache-2.0

//! Arguments of `setsockopt()` and `getsockopt()` that a program should not pass: wrong lengths,
//! and memory that ends too soon.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::sys::Mapping;

pub use crate::sys::Place;

/// The value of every byte that was not written.
const CANARY: u8 = 0xa5;

/// Memory of which every byte is watched, and that ends where nothing can be touched.
#[derive(Debug)]
pub struct Memory {
    mapping: Mapping,
    /// What the memory is before it is written to.
    clean: Vec<u8>,
}

/// What `getsockopt()` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// How it failed, if it did.
    pub errno: Option<Errno>,
    /// The length that it left.
    pub length: i32,
    /// What it wrote: from the place on, up to the last byte that changed.
    pub bytes: Vec<u8>,
    /// Whether it wrote anything before the place.
    pub before: bool,
}

impl Memory {
    /// How many bytes there are: those of a [`Place::BeforeEnd`] can be no more.
    pub const ROOM: usize = Mapping::ROOM;
    /// The size of a page, and of that of [`Place::ReadOnly`].
    pub const PAGE: usize = Mapping::PAGE;

    /// Maps the memory.
    pub fn new() -> io::Result<Self> {
        let mut mapping = Mapping::new()?;
        let clean = vec![CANARY; Self::ROOM];
        mapping.room_mut().copy_from_slice(&clean);
        Ok(Self { mapping, clean })
    }

    /// Returns how many bytes can be read from a place on, and none behind them.
    pub fn readable(place: Place) -> usize {
        match place {
            Place::Null | Place::Nowhere | Place::Guard => 0,
            Place::ReadOnly => Self::PAGE + Self::ROOM,
            Place::BeforeEnd(bytes) => bytes.min(Self::ROOM),
        }
    }

    /// Returns how many bytes can be written from a place on, and none behind them.
    pub fn writable(place: Place) -> usize {
        match place {
            Place::ReadOnly => 0,
            place => Self::readable(place),
        }
    }

    /// `setsockopt()` with a value that begins with `bytes`, as far as the place has room, and goes
    /// on with other bytes.
    pub fn set(
        &mut self,
        socket: impl AsFd,
        level: i32,
        name: i32,
        place: Place,
        bytes: &[u8],
        length: i32,
    ) -> Option<Errno> {
        self.clean();
        if let Place::BeforeEnd(room) = place {
            let room = room.min(Self::ROOM);
            let bytes = bytes.get(..room).unwrap_or(bytes);
            let start = Self::ROOM - room;
            if let Some(to) = self.mapping.room_mut().get_mut(start..start + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        }
        errno(
            self.mapping
                .set_option(socket.as_fd(), level, name, place, length),
        )
    }

    /// `getsockopt()` of a value of `length` bytes.
    pub fn get(
        &mut self,
        socket: impl AsFd,
        level: i32,
        name: i32,
        place: Place,
        length: i32,
    ) -> Got {
        self.clean();
        let (result, length) = self
            .mapping
            .get_option(socket.as_fd(), level, name, place, length);
        let start = match place {
            Place::BeforeEnd(room) => Self::ROOM - room.min(Self::ROOM),
            _ => Self::ROOM,
        };
        let (before, after) = self.mapping.room().split_at(start);
        let (clean_before, clean_after) = self.clean.split_at(start);
        let end = if after == clean_after {
            0
        } else {
            let changed = |byte: &u8| *byte != CANARY;
            after.iter().rposition(changed).map_or(0, |last| last + 1)
        };
        Got {
            errno: errno(result),
            length,
            bytes: after.get(..end).unwrap_or_default().to_vec(),
            before: before != clean_before,
        }
    }

    /// `getsockopt()` whose length, which is nowhere or `length`, cannot be read or written.
    pub fn get_by(
        &mut self,
        socket: impl AsFd,
        level: i32,
        name: i32,
        place: Place,
        length: Place,
    ) -> Option<Errno> {
        self.clean();
        errno(
            self.mapping
                .get_option_by(socket.as_fd(), level, name, place, length),
        )
    }

    /// Returns whether nothing was written since the last call.
    pub fn is_untouched(&self) -> bool {
        self.mapping.room() == self.clean
    }

    fn clean(&mut self) {
        self.mapping.room_mut().copy_from_slice(&self.clean);
    }
}

fn errno(result: io::Result<()>) -> Option<Errno> {
    let error = result.err()?;
    Some(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::libc::{IPPROTO_TCP, SOL_SOCKET, SO_RCVBUF, TCP_CONGESTION};

    use super::*;

    #[test]
    fn what_the_kernel_writes_is_seen() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut memory = Memory::new().unwrap();
        for room in [2, 16, 100] {
            let got = memory.get(
                &socket,
                IPPROTO_TCP,
                TCP_CONGESTION,
                Place::BeforeEnd(room),
                16,
            );
            if room < 16 {
                assert_eq!(got.errno, Some(Errno::EFAULT), "{got:?}");
                assert!(got.bytes.len() <= room);
            } else {
                assert_eq!((got.errno, got.length), (None, 16));
                assert!(got.bytes.len() <= 16 && got.bytes.contains(&0));
            }
            assert!(!got.before);
        }
        for place in [Place::Null, Place::Nowhere, Place::ReadOnly, Place::Guard] {
            let got = memory.get(&socket, SOL_SOCKET, SO_RCVBUF, place, 4);
            assert_eq!(got.errno, Some(Errno::EFAULT), "{place:?}");
            assert_eq!(Memory::writable(place), 0);
            let whole = Place::BeforeEnd(4);
            let errno = memory.get_by(&socket, SOL_SOCKET, SO_RCVBUF, whole, place);
            assert_eq!(errno, Some(Errno::EFAULT), "{place:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut memory = Memory::new().unwrap();
        let value = 10_000_i32.to_ne_bytes();
        for (place, errno) in [
            (Place::Null, Some(Errno::EFAULT)),
            (Place::Nowhere, Some(Errno::EFAULT)),
            (Place::Guard, Some(Errno::EFAULT)),
            (Place::BeforeEnd(3), Some(Errno::EFAULT)),
            (Place::BeforeEnd(4), None),
            (Place::ReadOnly, None),
        ] {
            let seen = memory.set(&socket, SOL_SOCKET, SO_RCVBUF, place, &value, 4);
            assert_eq!(seen, errno, "{place:?}");
        }
    }
}
