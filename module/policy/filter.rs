// SPDX-License-Identifier: GPL-2.0-only

//! The filters, which decide when a connection is worth accepting.

use super::SegmentKind;

/// What a filter makes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server has nothing to read yet: the connection waits.
    Wait,
    /// The server has something to do: the connection is accepted.
    Ready,
}

/// An accept filter, which a server asks for by name.
pub trait Filter {
    /// The name given to `setsockopt(IPPROTO_TCP, TCP_ULP)`: at most 15 bytes, as
    /// `TCP_ULP_NAME_MAX` is 16.
    const NAME: &'static str;

    /// Judges a segment that acknowledges the SYN-ACK and lies in the window.
    fn verdict(segment: SegmentKind) -> Verdict;
}

/// BSD's `dataready`: a connection is accepted once its first byte, or its end, has arrived.
pub struct Dataready;

impl Filter for Dataready {
    const NAME: &'static str = "dataready";

    fn verdict(segment: SegmentKind) -> Verdict {
        match segment {
            SegmentKind::BareAck => Verdict::Wait,
            SegmentKind::Data | SegmentKind::Fin => Verdict::Ready,
        }
    }
}
