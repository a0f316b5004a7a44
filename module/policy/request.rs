// SPDX-License-Identifier: GPL-2.0-only

//! The life of one connection request: unparked, parked, expired.

use super::{
    Bypass,
    Verdict, //
};

/// What a segment carries, as far as a filter cares.
///
/// Every segment judged here has passed `tcp_check_req()`: it acknowledges our SYN-ACK, lies in the
/// window, and is neither a SYN nor an RST (RFC 9293, section 3.10.7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Ends where the SYN ended: the third segment of a handshake without data, or a
    /// duplicate of it.
    BareAck,
    /// Carries at least one byte, or leaves a gap before what it carries.
    Data,
    /// Ends the client's stream and carries nothing else.
    Fin,
}

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)] // One instruction tells the variants apart; a niche of `Bypass` would take more.
pub enum Phase {
    /// Not parked: its bare ACK may park it.
    Unparked,
    /// Not parked, and must stay so: it goes on as on a plain listener.
    Exempt(Bypass),
    /// Parked: acknowledged, waiting for data or its deadline.
    Parked,
    /// Parked, and its time is up: the next ACK makes the connection, whatever it carries.
    Expired,
}

/// What to do with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)] // One instruction tells the variants apart; a niche of `Bypass` would take more.
pub enum Action {
    /// Drop the segment, mark the request acked, start its deadline.
    Park,
    /// Drop the segment; the request stays parked and its deadline stands.
    Hold,
    /// Pass the segment to TCP, which makes the connection.
    Admit,
    /// Pass the segment to TCP, although the filter wants the connection to wait.
    Bypass(Bypass),
}

/// Decides about a segment, by its filter's verdict and the `phase` of its request.
///
/// `phase` is evaluated only if the connection is to wait: a segment that has something for the
/// server is never kept from it, whatever the state of its request. ([`on_fin`](super::on_fin) is
/// asked before this.)
pub fn on_segment(verdict: Verdict, phase: impl FnOnce() -> Phase) -> Action {
    match verdict {
        Verdict::Ready => Action::Admit,
        Verdict::Wait => match phase() {
            Phase::Expired => Action::Admit,
            Phase::Exempt(cause) => Action::Bypass(cause),
            Phase::Unparked => Action::Park,
            Phase::Parked => Action::Hold,
        },
    }
}

/// Why TCP is about to send a SYN-ACK again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The request's timer fired.
    Timer,
    /// The client sent its SYN again: our SYN-ACK never reached it.
    ClientSyn,
}

/// What to do with a SYN-ACK that is about to be sent for a parked request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynAck {
    /// Let it go out.
    Send,
    /// The client has acknowledged one already: nothing goes out.
    Suppress,
}

/// Decides whether a parked request answers `trigger` with a SYN-ACK.
pub fn on_synack(trigger: Trigger) -> SynAck {
    match trigger {
        Trigger::Timer => SynAck::Suppress,
        Trigger::ClientSyn => SynAck::Send,
    }
}
