// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories of a listener, in a form that shrinks well.
//!
//! Their times, those in settings included, are in a unit that depends on the machine's speed.

use proptest::prelude::*;
use proptest::sample::select;

use crate::server::{Config, OnTimeout, Segment};

/// The number of a listener's clients.
pub const CLIENTS: usize = 6;

/// One move of a client, of the server, or of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// A client sends a segment.
    Send(usize, Segment),
    /// A client sends its SYN, and acknowledges the answer.
    Open(usize),
    /// Some time passes, in quarters of a unit.
    Wait(u32),
    /// The server changes its settings.
    Configure(Config),
    /// The server calls `accept()`.
    Accept,
    /// The server closes the listener.
    Close,
}

/// A listener's first settings, and the moves that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Its backlog.
    pub backlog: usize,
    /// Its first settings.
    pub config: Config,
    /// The source of each client: clients with the same number have the same address.
    pub sources: [usize; CLIENTS],
    /// The moves; one that is not possible at its time is left out.
    pub moves: Vec<Move>,
}

/// Returns a strategy for histories of fewer than this number of random moves. All clients have the
/// same address.
pub fn histories(moves: usize) -> impl Strategy<Value = History> {
    let random = (
        prop_oneof![Just(64_usize), Just(16_usize), 0..4_usize],
        any_config(),
        prop::collection::vec(any_move(4), 4..moves),
    );
    // A server that does not accept: a client is half open when the accept queue is full.
    let slow = (
        1..4_usize,
        any_config(),
        prop::collection::vec(any_move(1), 4..moves),
    )
        .prop_map(|(backlog, config, mut moves)| {
            let syn = |client| Move::Send(client, Segment::Syn);
            let data = |client| Move::Send(client, Segment::Data);
            let last = backlog + 1;
            let mut first = vec![Move::Open(0)];
            first.extend((1..last).flat_map(|client| [syn(client), data(client)]));
            first.extend([syn(CLIENTS - 1), syn(last), data(last)]);
            first.push(Move::Send(CLIENTS - 1, Segment::Ack));
            moves.splice(0..0, first);
            (backlog, config, moves)
        });
    prop_oneof![3 => random, 1 => slow].prop_map(|(backlog, config, moves)| History {
        backlog,
        config,
        sources: [0; CLIENTS],
        moves,
    })
}

/// Returns a strategy for the same with clients of one, two or three addresses.
pub fn histories_of_sources(moves: usize) -> impl Strategy<Value = History> {
    let sources = (1..4_usize).prop_flat_map(|count| prop::array::uniform6(0..count));
    (histories(moves), sources).prop_map(|(history, sources)| History { sources, ..history })
}

fn any_config() -> impl Strategy<Value = Config> {
    let timeout = prop_oneof![
        6 => (2..7_u64).prop_map(Some),
        1 => Just(Some(1000)),
        1 => Just(None),
    ];
    let max_parked = prop_oneof![
        2 => Just(0_u32),
        4 => 1..4_u32,
    ];
    let on_timeout = select(vec![
        OnTimeout::Accept,
        OnTimeout::Accept,
        OnTimeout::Reset,
        OnTimeout::Drop,
    ]);
    let paused = prop::bool::weighted(0.2);
    let all = (timeout, max_parked, on_timeout, paused, any::<bool>());
    all.prop_map(
        |(timeout, max_parked, on_timeout, paused, resets_on_close)| Config {
            timeout,
            max_parked,
            on_timeout,
            paused,
            resets_on_close,
        },
    )
}

fn any_move(accepts: u32) -> impl Strategy<Value = Move> {
    let client = 0..CLIENTS;
    prop_oneof![
        12 => client.clone().prop_map(Move::Open),
        22 => (client, any_segment()).prop_map(|(client, segment)| Move::Send(client, segment)),
        9 => (1..9_u32).prop_map(Move::Wait),
        // Long enough for SYN-ACKs to be retransmitted.
        1 => (9..24_u32).prop_map(Move::Wait),
        3 => any_config().prop_map(Move::Configure),
        accepts => Just(Move::Accept),
        1 => Just(Move::Close),
    ]
}

fn any_segment() -> impl Strategy<Value = Segment> {
    prop_oneof![
        7 => Just(Segment::Syn),
        6 => Just(Segment::Ack),
        4 => Just(Segment::Data),
        2 => Just(Segment::Fin),
        2 => Just(Segment::DataFin),
        2 => Just(Segment::Rst),
        1 => Just(Segment::InexactRst),
        1 => Just(Segment::Probe),
        1 => Just(Segment::ProbeWithByte),
        1 => Just(Segment::OldData),
        1 => Just(Segment::WrongAck),
        1 => Just(Segment::SynInWindow),
        1 => Just(Segment::StraySyn),
        1 => Just(Segment::NoAck),
    ]
}
