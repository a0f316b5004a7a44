// SPDX-License-Identifier: MIT OR Apache-2.0

//! Connections that a filtered listener accepts each way, compared with those of a plain one.

use std::time::Duration;

use accf_kit::capture::{Direction, Packet};
use accf_kit::control::{settings, timeout, OnTimeout};
use accf_kit::endpoint::{Accepted, Family, Listen};
use accf_kit::forge::Forged;
use accf_kit::netns::Netns;
use accf_kit::raw::{RawClient, RawHost};
use accf_kit::segment::{Flags, Segment};
use accf_kit::{packet_options, tcp_info, wait};
use anyhow::{ensure, Context as _, Result};

use crate::case::{expect_eq, Context};
use crate::count::counted;
use crate::scene::{expect_reset, serve_request, Peer, RawScene, Scene, REQUEST};

/// The limit of cases that compare.
pub(crate) const LONG: Duration = Duration::from_secs(180);
/// Fields of `TCP_INFO` that are not the same in two connections, and why.
const DIFFERS: [(&str, &str); 15] = [
    ("rto", "follows the round-trip time"),
    ("rtt", "is measured"),
    ("rttvar", "is measured"),
    ("min_rtt", "is measured"),
    ("rcv_rtt", "is measured"),
    ("pacing_rate", "follows the round-trip time"),
    ("delivery_rate", "is measured"),
    ("last_data_sent", "is an age"),
    ("last_data_recv", "is an age"),
    ("last_ack_recv", "is an age"),
    ("busy_time", "is a time"),
    ("rwnd_limited", "is a time"),
    ("sndbuf_limited", "is a time"),
    ("total_rto_time", "is a time"),
    // Compared where the ACK is acknowledged, and not where it is not.
    ("ato", "adapts to when the last segments came"),
];

/// Fields that count SYN-ACKs; `field.ack.repeated_syn_ack` compares them.
const OF_SYN_ACKS: [&str; 3] = ["total_retrans", "total_rto", "total_rto_recoveries"];

/// The fact that has the flow labels.
pub(crate) const FLOW_LABELS: &str = "flow labels";
/// The window scale of clients.
pub(crate) const WINDOW_SCALE: u8 = 7;

/// How a connection comes to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By its bare ACK, at a plain listener.
    Plain,
    /// By data.
    Data,
    /// At the deadline.
    Deadline,
    /// Because another client was parked, and there is room for one.
    Evicted,
}

impl Way {
    /// All of them, the plain listener first.
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Data, Self::Deadline, Self::Evicted];

    /// Returns the listener that accepts this way.
    pub(crate) fn listen(self, family: Family) -> Listen {
        match self {
            Self::Plain => Listen::plain(family),
            Self::Data => Listen::filtered(family).config(timeout(0)),
            Self::Deadline => Listen::filtered(family).config(timeout(400)),
            Self::Evicted => {
                Listen::filtered(family).config(settings(60_000, 1, OnTimeout::Accept))
            }
        }
    }
}

/// When a connection is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It was accepted, and its client has not sent data. Not if data is what it is accepted by.
    Silent,
    /// The client's request has come, and is acknowledged; it was not read.
    Requested,
    /// The request was read, and the client has the response.
    Served,
}

/// What is looked at: a listener's scene, its client, and the accepted connection.
pub(crate) struct View<'a> {
    pub(crate) scene: &'a RawScene,
    pub(crate) client: &'a RawClient,
    pub(crate) accepted: &'a Accepted,
    pub(crate) moment: Moment,
}

/// What is known of a connection at each moment.
type Facts = Vec<(Moment, Vec<String>)>;

/// How a connection is set up, and what is compared.
pub(crate) struct Comparison<'a> {
    /// Connects the clients to the listener's namespace.
    pub(crate) host: &'a dyn Fn(&Netns) -> Result<RawHost>,
    /// What the clients send.
    pub(crate) request: &'a [u8],
    /// Called with the listener's scene before the first SYN.
    pub(crate) prepare: &'a dyn Fn(&RawScene) -> Result<()>,
    /// Called with a client before its SYN.
    pub(crate) client: &'a dyn Fn(&RawScene, &mut RawClient) -> Result<()>,
    /// Returns what must be the same, whichever way the connection was accepted.
    pub(crate) look: &'a dyn Fn(&View<'_>) -> Result<Vec<String>>,
}

/// What the headers of a segment say that its connection leaves open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headers {
    /// AE, CWR and ECE.
    pub(crate) ace: u8,
    /// TOS, or traffic class.
    pub(crate) dsfield: u8,
    /// TTL, or hop limit.
    pub(crate) hop_limit: u8,
    pub(crate) flow_label: u32,
    pub(crate) window: u16,
}

impl Headers {
    /// Returns a segment with these headers.
    pub(crate) fn on(self, segment: Segment) -> Forged {
        let mut forged = Forged::from(Segment {
            window: self.window,
            ..segment
        });
        forged.set_ace(self.ace);
        forged.dsfield = self.dsfield;
        forged.hop_limit = self.hop_limit;
        forged.flow_label = self.flow_label;
        forged
    }
}

/// Has a client do its handshake, with a bare ACK.
pub(crate) fn handshake(
    context: &Context,
    scene: &RawScene,
    client: &mut RawClient,
    mss: u16,
    syn: Headers,
    ack: Headers,
) -> Result<()> {
    let syn = syn.on(Segment {
        mss: Some(mss),
        sack_permitted: true,
        window_scale: Some(WINDOW_SCALE),
        ..client.segment(Flags::SYN, b"")
    });
    client.snd_nxt = syn.segment.end_seq();
    inject(scene, &syn)?;
    client
        .receive_until(context.patience(), Segment::is_syn_ack)?
        .context("no SYN-ACK came")?;
    inject(scene, &ack.on(client.segment(Flags::ACK, b"")))
}

impl Comparison<'static> {
    /// Clients behind a TUN interface, nothing that is prepared, and nothing that is compared.
    pub(crate) const DEFAULT: Self = Self {
        host: &RawHost::new,
        request: REQUEST,
        prepare: &|_| Ok(()),
        client: &|_, _| Ok(()),
        look: &|_| Ok(Vec::new()),
    };
}

impl Comparison<'_> {
    /// Opens a listener that accepts this way, and prepares it.
    fn scene(&self, context: &Context, family: Family, listen: &Listen) -> Result<RawScene> {
        let scene = RawScene::with(context, family, listen, self.host)?;
        (self.prepare)(&scene)?;
        Ok(scene)
    }

    /// Checks that connections are alike, whichever way they were accepted.
    pub(crate) fn run(&self, context: &Context, family: Family) -> Result<()> {
        let mut plain: Facts = Vec::new();
        for way in Way::ALL {
            let facts = self
                .of(context, family, way)
                .with_context(|| format!("{way:?}"))?;
            if way == Way::Plain {
                plain = facts;
                continue;
            }
            for (moment, seen) in facts {
                let expected = plain
                    .iter()
                    .find_map(|(of, facts)| (*of == moment).then_some(facts))
                    .context("a moment that the plain listener did not have")?;
                alike(expected, &seen, &format!("{way:?}, {moment:?}"))?;
            }
        }
        Ok(())
    }

    /// Has a client do its handshake, by a SYN and an ACK whose IP headers differ.
    fn connect(&self, context: &Context, scene: &RawScene) -> Result<RawClient> {
        let mut client = scene.client();
        (self.client)(scene, &mut client)?;
        let syn = Headers {
            ace: 0,
            dsfield: 0x40,
            hop_limit: 60,
            flow_label: 0x1_2345,
            window: u16::MAX,
        };
        let ack = Headers {
            dsfield: 0xb8,
            hop_limit: 33,
            flow_label: 0xa_bcde,
            ..syn
        };
        handshake(context, scene, &mut client, 1460, syn, ack)?;
        scene.bare_ack(context, &client)?;
        Ok(client)
    }

    /// Returns what is known of a connection that was accepted this way.
    fn of(&self, context: &Context, family: Family, way: Way) -> Result<Facts> {
        let scene = self.scene(context, family, &way.listen(family))?;
        let mut client = self.connect(context, &scene)?;
        let mut newcomer = None;
        match way {
            Way::Plain | Way::Deadline => {}
            Way::Data => {
                scene.counts(context, counted!(parked: 1))?;
                client.data(self.request)?;
            }
            Way::Evicted => {
                scene.counts(context, counted!(parked: 1))?;
                newcomer = Some(self.connect(context, &scene)?);
            }
        }
        let accepted = scene.accept_from(context, &client)?;
        let mut facts = Vec::new();
        let mut look = |client: &RawClient, moment| -> Result<()> {
            let view = View {
                scene: &scene,
                client,
                accepted: &accepted,
                moment,
            };
            facts.push((moment, (self.look)(&view)?));
            Ok(())
        };
        if way != Way::Data {
            look(&client, Moment::Silent)?;
            client.data(self.request)?;
        }
        ensure!(
            wait::readable(&accepted.stream, context.patience())?,
            "nothing to read"
        );
        let end = client.snd_nxt;
        client
            .receive_until(context.patience(), |segment| segment.ack == end)?
            .context("the request was not acknowledged")?;
        look(&client, Moment::Requested)?;
        serve_request(&accepted, self.request)?;
        client.read_response(context)?;
        look(&client, Moment::Served)?;
        match way {
            Way::Plain => {}
            Way::Data => scene.counts(context, counted!(released_data: 1))?,
            Way::Deadline => scene.counts(context, counted!(timeout_accept: 1))?,
            Way::Evicted => scene.counts(context, counted!(parked: 1, evicted: 1))?,
        }
        drop(newcomer);
        Ok(facts)
    }

    /// Checks that a client that resets while it is parked is never accepted.
    pub(crate) fn aborts(&self, context: &Context, family: Family) -> Result<()> {
        let scene = self.scene(context, family, &Way::Data.listen(family))?;
        let mut client = self.connect(context, &scene)?;
        scene.counts(context, counted!(parked: 1))?;
        client.rst()?;
        scene.counts(context, counted!(aborted: 1))?;
        scene.accept_nothing(Duration::from_millis(100), "its client has reset")
    }

    /// Checks that a silent client is reset, at its deadline and as the oldest of too many.
    pub(crate) fn resets(&self, context: &Context, family: Family) -> Result<()> {
        for (timeout_ms, max_parked) in [(400, 0), (60_000, 1)] {
            let config = settings(timeout_ms, max_parked, OnTimeout::Reset);
            let listen = Listen::filtered(family).config(config);
            let scene = self.scene(context, family, &listen)?;
            let mut client = self.connect(context, &scene)?;
            let newcomer = match max_parked {
                0 => None,
                _ => Some(self.connect(context, &scene)?),
            };
            let seq = client.rcv_nxt;
            let reset = expect_reset(context, &mut client, "the silent client was not reset")?;
            expect_eq!(reset.segment.seq, seq, "sequence number of the reset");
            scene.accept_nothing(Duration::from_millis(100), "no client has sent anything")?;
            match newcomer {
                None => scene.counts(context, counted!(timeout_reset: 1))?,
                Some(_) => scene.counts(context, counted!(parked: 1, evicted: 1))?,
            }
        }
        Ok(())
    }
}

/// Fails unless both connections are alike; the error says in what they differ.
pub(crate) fn alike(plain: &[String], other: &[String], what: &str) -> Result<()> {
    let lacks = |one: &[String], two: &[String]| {
        let facts = one.iter().filter(|fact| !two.contains(fact));
        facts.cloned().collect::<Vec<_>>().join(", ")
    };
    ensure!(
        plain == other,
        "{what}: expected {}; saw {}",
        lacks(plain, other),
        lacks(other, plain)
    );
    Ok(())
}

/// Returns what can be known of a connection, and is the same in all that are alike: the fields of
/// `TCP_INFO`, the control messages and the flow labels.
pub(crate) fn facts(accepted: &Accepted, family: Family) -> Result<Vec<String>> {
    let mut facts: Vec<String> = tcp_info::all(&accepted.stream)?
        .into_iter()
        .filter(|(name, _)| DIFFERS.iter().all(|(differs, _)| differs != name))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    for (level, kind, data) in packet_options::told(&accepted.stream, family)? {
        facts.push(format!("control message {level}.{kind} {data:?}"));
    }
    if family != Family::V4 {
        let labels = packet_options::flow_labels(&accepted.stream)?;
        facts.push(format!("{FLOW_LABELS} {labels:x?}"));
    }
    Ok(facts)
}

/// Takes the counts of SYN-ACKs away: on a busy machine a SYN-ACK may be sent again before the ACK
/// comes.
pub(crate) fn without_syn_acks(mut facts: Vec<String>) -> Vec<String> {
    facts.retain(|fact| !begins_with_one_of(fact, &OF_SYN_ACKS));
    facts
}

/// Returns whether the name of a fact is one of these.
pub(crate) fn begins_with_one_of(fact: &str, names: &[&str]) -> bool {
    let is_of = |name: &&str| {
        let rest = fact.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(' '))
    };
    names.iter().any(is_of)
}

/// Puts a forged segment on the wire.
pub(crate) fn inject(scene: &RawScene, forged: &Forged) -> Result<()> {
    for packet in forged.packets()? {
        scene.host.inject(&packet)?;
    }
    Ok(())
}

/// Returns what an IP header says of the way that its packet is to go: TOS or traffic class, flow
/// label, TTL or hop limit.
pub(crate) fn way_of(packet: &Packet) -> Result<[u32; 3]> {
    let byte = |at: usize| packet.bytes.get(at).copied().map(u32::from);
    let fields = || {
        if packet.segment.source.is_ipv4() {
            return Some([byte(1)?, 0, byte(8)?]);
        }
        let word = u32::from_be_bytes(packet.bytes.get(..4)?.try_into().ok()?);
        Some([word >> 20 & 0xff, word & 0xf_ffff, byte(7)?])
    };
    fields().context("a packet without a header")
}

/// Returns the first packet that the server sent a client and that satisfies `wanted`.
pub(crate) fn sent_to(
    context: &Context,
    scene: &RawScene,
    client: &RawClient,
    wanted: impl Fn(&Packet) -> bool,
) -> Result<Packet> {
    scene
        .capture
        .wait_for(context.patience(), |packet| {
            packet.direction == Direction::Out
                && packet.segment.destination == client.local
                && wanted(packet)
        })?
        .context("the packet is not on the wire")
}
