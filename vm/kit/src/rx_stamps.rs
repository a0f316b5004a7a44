// SPDX-License-Identifier: MIT OR Apache-2.0

//! When data was received, as the kernel tells it with the data.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::{
    recvmsg, setsockopt, sockopt, ControlMessageOwned, MsgFlags, TimestampingFlag,
};

use crate::clock::Stamp;

/// How to ask for the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `SO_TIMESTAMP`.
    Micros,
    /// `SO_TIMESTAMPNS`.
    Nanos,
    /// `SO_TIMESTAMPING`, of the time at which the kernel had the packet.
    Software,
}

impl Ask {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Micros, Self::Nanos, Self::Software];
}

/// Asks for the time, on a listener for its children, or on an accepted socket.
pub fn ask(socket: impl AsFd, ask: Ask) -> nix::Result<()> {
    match ask {
        Ask::Micros => setsockopt(&socket, sockopt::ReceiveTimestamp, &true),
        Ask::Nanos => setsockopt(&socket, sockopt::ReceiveTimestampns, &true),
        Ask::Software => setsockopt(
            &socket,
            sockopt::Timestamping,
            &(TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
                | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE),
        ),
    }
}

/// Returns the number of bytes that wait to be read, and when the last of them was received;
/// nothing instead, if the kernel does not say.
pub fn of_data(socket: impl AsFd) -> nix::Result<(usize, Option<Stamp>)> {
    let mut buffer = [0; 4096];
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!([u8; 256]);
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(fd, &mut iov, Some(&mut control), MsgFlags::MSG_PEEK)?;
    let at = message.cmsgs()?.find_map(|message| {
        let at = match message {
            ControlMessageOwned::ScmTimestamp(at) => {
                Duration::new(at.tv_sec() as u64, at.tv_usec() as u32 * 1000)
            }
            ControlMessageOwned::ScmTimestampns(at) => Duration::from(at),
            ControlMessageOwned::ScmTimestampsns(at) => Duration::from(at.system),
            _ => return None,
        };
        Some(Stamp::from_epoch(at))
    });
    Ok((message.bytes, at))
}
