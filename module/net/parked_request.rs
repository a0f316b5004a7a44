// SPDX-License-Identifier: GPL-2.0-only

//! The list entry of a parked request.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    alloc::flags::{
        __GFP_NOWARN,
        GFP_ATOMIC, //
    },
    bits::bit_u32,
    impl_flags,
    list::{
        impl_list_arc_safe,
        impl_list_item,
        ListArc,
        ListLinks, //
    },
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        UniqueArc, //
    }, //
};

use crate::policy::{
    Expiry,
    Nanos,
    OnTimeout,
    Phase, //
};

use super::{
    bindings::{
        self,
        accf_arrival, //
    },
    reqsk::{
        KeptAck,
        RequestSock,
        RoundTrip, //
    },
    tcp_segment::{
        TcpSegment,
        Timestamps, //
    }, //
};

/// The list entry of a parked request: 64 bytes, with the reference count of its `Arc`.
#[pin_data]
pub(crate) struct ParkedRequest {
    #[pin]
    links: ListLinks,
    ack: AckInfo,
}

/// The data of a parked request: what its bare ACK carried, and its state.
///
/// The atomics are written only under the lock of the parking listener, and have no ordering of
/// their own.
pub(crate) struct AckInfo {
    /// The request. Alive while its entry is in the queue, under the lock.
    request: NonNull<bindings::request_sock>,
    parked_at: Nanos,
    first_ack: FirstAck,
    /// The interface that the first bare ACK came in by.
    iif: u32,
    /// The lower 24 bits of `write_seq` of the listener, read just before the request was parked;
    /// and in the upper 8 bits how often the client was silent when a sign of it was due.
    write_seq_and_silences: Atomic<u32>,
    /// TSval of the last bare ACK; valid only with [`ParkedFlag::HasTsval`].
    tsval: Atomic<u32>,
    /// [`ParkedFlags`].
    state: Atomic<u32>,
}

// Together with the reference count of its `Arc`, 64 bytes.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<ParkedRequest>() == 56);

impl AckInfo {
    /// Returns the data of no request, which must be replaced before they are read.
    fn vacant() -> Self {
        Self {
            request: NonNull::dangling(),
            parked_at: Nanos(0),
            first_ack: FirstAck(0),
            iif: 0,
            write_seq_and_silences: Atomic::new(0),
            tsval: Atomic::new(0),
            state: Atomic::new(0),
        }
    }

    /// Returns the data of `request`, whose bare ACK is `segment`.
    #[inline(always)] // See `Listener::park()`.
    pub(crate) fn new(
        request: &RequestSock<'_>,
        segment: &TcpSegment<'_>,
        parked_at: Nanos,
    ) -> Self {
        let timestamps = segment.timestamps(request.uses_timestamps());
        let arrival = segment.arrival();
        let mut state = ParkedFlags::of_ack(segment.window(), timestamps).with_ace(segment.ace());
        if request.has_repeated_syn_ack() {
            state = state.of_repeated_syn_ack(*request, *segment, timestamps);
        }
        Self {
            request: request.as_non_null(),
            parked_at,
            first_ack: FirstAck::new(request.round_trip(parked_at, timestamps), &arrival),
            iif: arrival.iif as u32,
            write_seq_and_silences: Atomic::new(
                request.listen_sock().write_seq() & bindings::ACCF_WRITE_SEQ_MASK,
            ),
            tsval: Atomic::new(timestamps.map_or(0, |timestamps| timestamps.value)),
            state: Atomic::new(state.into()),
        }
    }

    /// Adds the flags of a request that is about to enter one of the two lists: whether its SYN-ACK
    /// timer stays armed, and whether it was taken off the count of young requests.
    pub(crate) fn begin(mut self, is_timer_armed: bool, is_young: bool) -> Self {
        let state = self.state.get_mut();
        *state = ParkedFlags(*state)
            .with(ParkedFlag::TimerArmed, is_timer_armed)
            .with(ParkedFlag::Young, is_young)
            .into();
        self
    }
}

// SAFETY: `request` is only dereferenced under the lock of the parking listener; the other fields
// are `Send`.
unsafe impl Send for AckInfo {}
// SAFETY: `request` is only dereferenced under the lock of the parking listener; the other fields
// are constant, or atomic.
unsafe impl Sync for AckInfo {}

/// The round-trip time by the first bare ACK in microseconds, or why it is not there, in bits 0 to
/// 27; and that ACK's IP header, where [`accf_arrival`] has it (`ip`).
#[derive(Clone, Copy)]
struct FirstAck(u64);

impl FirstAck {
    const RTT_UNKNOWN: u32 = (1 << bindings::ACCF_FLOW_LABEL_SHIFT) - 1;
    const RTT_SINCE_SYN_ACK: u32 = Self::RTT_UNKNOWN - 1;
    /// 268 s, which is longer than TCP waits for anything.
    const RTT_MAX: u32 = Self::RTT_SINCE_SYN_ACK - 1;

    fn new(round_trip: Option<RoundTrip>, arrival: &accf_arrival) -> Self {
        let rtt = match round_trip {
            None => Self::RTT_UNKNOWN,
            Some(RoundTrip::SinceSynAck) => Self::RTT_SINCE_SYN_ACK,
            Some(RoundTrip::Micros(micros)) => micros.min(Self::RTT_MAX),
        };
        Self(u64::from(rtt) | arrival.ip)
    }

    /// Returns the round-trip time, if it is known.
    fn round_trip(self) -> Option<RoundTrip> {
        match self.0 as u32 & Self::RTT_UNKNOWN {
            Self::RTT_UNKNOWN => None,
            Self::RTT_SINCE_SYN_ACK => Some(RoundTrip::SinceSynAck),
            micros => Some(RoundTrip::Micros(micros)),
        }
    }

    /// Returns what IP said of the ACK, which came in by the interface `iif`.
    fn arrival(self, iif: u32) -> accf_arrival {
        accf_arrival {
            ip: self.0 & !u64::from(Self::RTT_UNKNOWN),
            iif: iif.into(),
        }
    }
}

impl_flags!(
    /// The state of a parked request, read at once: the window of its last bare ACK in the lower 16
    /// bits, flags, and the TCP flags AE, CWR and ECE of its first bare ACK in bits 25 to 27.
    #[derive(Clone, Copy)]
    pub(crate) struct ParkedFlags(u32);

    /// A flag of a parked request.
    #[derive(Clone, Copy)]
    pub(crate) enum ParkedFlag {
        /// The last bare ACK had a timestamp.
        HasTsval = bit_u32(16),
        /// The deadline is over.
        TimedOut = bit_u32(17),
        /// The request is evicted ([`Expiry::Eviction`]).
        Evicted = bit_u32(18),
        /// The request was taken off the listener's count of young requests.
        Young = bit_u32(19),
        /// The request is expired, and is to be accepted: for the cause that `TimedOut`, `Evicted`
        /// or `Paused` tells, or because a SYN inside of its window came.
        Accept = bit_u32(20),
        /// TCP has refused to make a connection of it.
        Refused = bit_u32(21),
        /// The request is in the list of those whose SYN-ACK timers are still armed.
        TimerArmed = bit_u32(22),
        /// The first bare ACK echoed the timestamp of the first SYN-ACK, of several.
        EchoesFirst = bit_u32(23),
        /// The first bare ACK said that the SYN-ACK came twice.
        HasDsack = bit_u32(24),
        /// The client has not answered to probes, and the request is in the list of those. With
        /// `TimedOut`, a CPU is about to drop it.
        Died = bit_u32(30),
        /// Parking is paused, and the request is handed over to the server.
        Paused = bit_u32(28),
        /// The listener has stopped, and the client is told.
        Stopped = bit_u32(29),
        /// The request is counted by its source, and in the list of those.
        Counted = bit_u32(31),
    }
);

impl ParkedFlags {
    /// Returns what a bare ACK with this window tells, and whether it had a timestamp.
    fn of_ack(window: u16, timestamps: Option<Timestamps>) -> Self {
        Self(u32::from(window)).with(ParkedFlag::HasTsval, timestamps.is_some())
    }

    /// The flags of a request that has expired, at least one of which is set.
    const EXPIRED: u32 = ParkedFlag::TimedOut as u32
        | ParkedFlag::Evicted as u32
        | ParkedFlag::Paused as u32
        | ParkedFlag::Stopped as u32
        | ParkedFlag::Died as u32
        | ParkedFlag::Accept as u32;

    /// Where AE, CWR and ECE are; ECE is the lowest.
    const ACE_SHIFT: u32 = 25;

    /// Returns the same with these AE, CWR and ECE.
    fn with_ace(self, ace: u8) -> Self {
        Self(self.0 | u32::from(ace) << Self::ACE_SHIFT)
    }

    /// Returns AE, CWR and ECE of the first bare ACK.
    pub(crate) fn ace(self) -> u8 {
        (self.0 >> Self::ACE_SHIFT) as u8 & 7
    }

    /// Returns the same with what a bare ACK tells of several SYN-ACKs: `segment`, of `request`,
    /// with these timestamps.
    #[cold] // Few SYN-ACKs are sent more than once.
    fn of_repeated_syn_ack(
        self,
        request: RequestSock<'_>,
        segment: TcpSegment<'_>,
        timestamps: Option<Timestamps>,
    ) -> Self {
        let first = request.first_tsval_sent();
        let echoes_first = timestamps.is_some_and(|timestamps| timestamps.echo == first);
        self.with(ParkedFlag::EchoesFirst, echoes_first)
            .with(ParkedFlag::HasDsack, segment.has_sack())
    }

    /// Returns the same with `flag` set or cleared.
    fn with(self, flag: ParkedFlag, value: bool) -> Self {
        let flag = ParkedFlags::from(flag);
        let mask = if value { flag.0 } else { 0 };
        Self(self.0 & !flag.0 | mask)
    }

    /// Returns the window of the last bare ACK, not scaled.
    fn window(self) -> u16 {
        self.0 as u16
    }

    /// Returns the phase of the request. One that is to be reset or dropped counts as parked until
    /// that is done.
    pub(crate) fn phase(self) -> Phase {
        if self.contains(ParkedFlag::Accept) {
            Phase::Expired
        } else {
            Phase::Parked
        }
    }

    /// Returns why the request has expired, if it has.
    pub(crate) fn expired(self) -> Option<Expiry> {
        if self.0 & Self::EXPIRED == 0 {
            None
        } else if self.contains(ParkedFlag::Died) {
            Some(Expiry::Died)
        } else if self.contains(ParkedFlag::TimedOut) {
            Some(Expiry::Timeout)
        } else if self.contains(ParkedFlag::Evicted) {
            Some(Expiry::Eviction)
        } else if self.contains(ParkedFlag::Paused) {
            Some(Expiry::Pause)
        } else if self.contains(ParkedFlag::Stopped) {
            Some(Expiry::Stopped)
        } else if self.contains(ParkedFlag::Accept) {
            Some(Expiry::SynInWindow)
        } else {
            None
        }
    }

    /// Returns whether the request was taken off the listener's count of young requests.
    pub(crate) fn is_young(self) -> bool {
        self.contains(ParkedFlag::Young)
    }

    /// Returns whether the request is in the list of those whose SYN-ACK timers are still armed.
    pub(crate) fn is_timer_armed(self) -> bool {
        self.contains(ParkedFlag::TimerArmed)
    }

    /// Returns whether the client has died, and the request is in the list of those.
    pub(crate) fn is_dead(self) -> bool {
        self.contains(ParkedFlag::Died)
    }

    /// Returns whether a CPU is about to drop the request, as its client has died.
    pub(crate) fn is_taken_as_dead(self) -> bool {
        self.is_dead() && self.contains(ParkedFlag::TimedOut)
    }

    /// Returns whether the request is counted by its source, and in the list of those.
    pub(crate) fn is_counted(self) -> bool {
        self.contains(ParkedFlag::Counted)
    }
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for ParkedRequest { untracked; }
}
impl_list_item! {
    impl ListItem<0> for ParkedRequest { using ListLinks { self.links }; }
}

impl ParkedRequest {
    /// Allocates an entry of no request yet, without sleeping.
    #[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
    pub(crate) fn new() -> Result<Pin<UniqueArc<Self>>> {
        UniqueArc::pin_init(
            try_pin_init!(Self {
                links <- ListLinks::new(),
                ack: AckInfo::vacant(),
            }? Error),
            GFP_ATOMIC | __GFP_NOWARN,
        )
    }

    /// Makes `this`, to which there is no other reference, the entry of the request that `ack`
    /// describes.
    pub(crate) fn fill(mut this: Pin<UniqueArc<Self>>, ack: AckInfo) -> ListArc<Self> {
        *this.as_mut().project().ack = ack;
        ListArc::from(this)
    }

    /// Takes note of the client's last bare ACK.
    ///
    /// # Safety
    ///
    /// `self` must be in the queue of the parking listener, whose lock the caller holds.
    pub(crate) unsafe fn set_last_ack(&self, request: RequestSock<'_>, segment: TcpSegment<'_>) {
        let timestamps = segment.timestamps(request.uses_timestamps());
        if let Some(timestamps) = timestamps {
            self.ack.tsval.store(timestamps.value, Relaxed);
        }
        // A timestamp that was seen stays valid.
        let ack = ParkedFlags::of_ack(segment.window(), timestamps);
        let kept = self.flags().0 & !u32::from(u16::MAX);
        self.ack.state.store(kept | ack.0, Relaxed);
    }

    /// Returns the request.
    ///
    /// # Safety
    ///
    /// `self` must be in the queue of the parking listener, or have been taken out of it while the
    /// lock has been held since. The lock must be held for as long as the returned value is used.
    pub(crate) unsafe fn request(&self) -> RequestSock<'_> {
        // SAFETY: The request was alive when it was parked, and had a listener. Before it is freed,
        // its destructor takes this entry out of the queue, under the lock, which is held by the
        // contract of this function.
        unsafe { RequestSock::from_raw(self.ack.request) }
    }

    /// Returns a pointer to the request, which may be gone.
    pub(crate) fn request_ptr(&self) -> NonNull<bindings::request_sock> {
        self.ack.request
    }

    /// Returns when it was parked.
    pub(crate) fn parked_at(&self) -> Nanos {
        self.ack.parked_at
    }

    /// Returns the round-trip time of the handshake, if it is known.
    pub(crate) fn round_trip(&self) -> Option<RoundTrip> {
        self.ack.first_ack.round_trip()
    }

    /// Returns the lower 24 bits of `write_seq` of the listener, read just before the request was
    /// parked.
    pub(crate) fn write_seq(&self) -> u32 {
        self.ack.write_seq_and_silences.load(Relaxed) & bindings::ACCF_WRITE_SEQ_MASK
    }

    /// Returns how often the client was silent when a sign of it was due, since the last one.
    pub(crate) fn silences(&self) -> u8 {
        (self.ack.write_seq_and_silences.load(Relaxed) >> Self::SILENCES_SHIFT) as u8
    }

    /// Where the silences are.
    const SILENCES_SHIFT: u32 = bindings::ACCF_WRITE_SEQ_MASK.count_ones();

    /// Sets how often the client was silent.
    ///
    /// # Safety
    ///
    /// `self` must be in the queue of the parking listener, whose lock the caller holds.
    pub(crate) unsafe fn set_silences(&self, silences: u8) {
        let silences = u32::from(silences) << Self::SILENCES_SHIFT;
        // No other CPU writes it, as the lock is held by the contract of this function.
        self.ack
            .write_seq_and_silences
            .store(self.write_seq() | silences, Relaxed);
    }

    /// Returns what IP said of the first bare ACK.
    pub(crate) fn arrival(&self) -> accf_arrival {
        self.ack.first_ack.arrival(self.ack.iif)
    }

    /// Returns what is kept of the bare ACK.
    pub(crate) fn ack(&self) -> KeptAck {
        let flags = self.flags();
        KeptAck {
            window: flags.window(),
            tsval: flags
                .contains(ParkedFlag::HasTsval)
                .then(|| self.ack.tsval.load(Relaxed)),
            echoes_first: flags.contains(ParkedFlag::EchoesFirst),
            has_dsack: flags.contains(ParkedFlag::HasDsack),
            arrival: self.arrival(),
            ace: flags.ace(),
        }
    }

    /// Returns the flags of the request.
    pub(crate) fn flags(&self) -> ParkedFlags {
        // A `READ_ONCE()`, which is what a relaxed load is, without its call.
        // SAFETY: The pointer is that of a field of `self`, and what writes it is atomic.
        ParkedFlags(unsafe { ptr::read_volatile(self.ack.state.as_ptr()) })
    }

    /// Marks the request as expired, with what is to become of it; `None` makes it wait again.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock of the parking listener. `self` must be in its queue, and not
    /// in the list of the dead.
    pub(crate) unsafe fn set_expired(&self, expired: Option<(Expiry, OnTimeout)>) {
        let (expiry, on_timeout) = expired.unzip();
        // SAFETY: The lock is held by the contract of this function, and these flags name no list.
        unsafe {
            self.set(ParkedFlag::TimedOut, expiry == Some(Expiry::Timeout));
            self.set(ParkedFlag::Evicted, expiry == Some(Expiry::Eviction));
            self.set(ParkedFlag::Paused, expiry == Some(Expiry::Pause));
            self.set(ParkedFlag::Stopped, expiry == Some(Expiry::Stopped));
            self.set(ParkedFlag::Accept, on_timeout == Some(OnTimeout::Accept));
        }
    }

    /// Marks the request as one that was to be accepted and was refused. Returns whether it was
    /// marked before.
    ///
    /// # Safety
    ///
    /// `self` must be in the queue of the parking listener, whose lock the caller holds.
    pub(crate) unsafe fn set_refused(&self) -> bool {
        let before = self.flags().contains(ParkedFlag::Refused);
        // SAFETY: The lock is held by the contract of this function, and the flag names no
        // list.
        unsafe { self.set(ParkedFlag::Refused, true) };
        before
    }

    /// Marks the request as one whose SYN-ACK timer is deferred: it moves to another list.
    ///
    /// # Safety
    ///
    /// `self` must just have been taken out of the list of requests with armed timers. The caller
    /// must have held the lock of the parking listener since, and put `self` into the list that its
    /// flags name before dropping the lock: `ParkQueue::remove()` takes the flag for the list.
    pub(crate) unsafe fn set_timer_deferred(&self) {
        // SAFETY: The lock is held, and the entry moves to the list that the flag names, by the
        // contract of this function.
        unsafe { self.set(ParkedFlag::TimerArmed, false) };
    }

    /// Marks the request as one whose client has died: it moves to another list.
    ///
    /// # Safety
    ///
    /// `self` must just have been taken out of its list. The caller must have held the lock of the
    /// parking listener since, and put `self` into the list of the dead before dropping the lock:
    /// `ParkQueue::remove()` takes the flag for the list.
    pub(crate) unsafe fn set_dead(&self) {
        // SAFETY: The lock is held, and the entry moves to the list that the flag names, by the
        // contract of this function.
        unsafe { self.set(ParkedFlag::Died, true) };
    }

    /// Marks the request as one that a CPU is about to drop, as its client has died.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock of the parking listener. `self` must be in its queue, in the
    /// list of the dead, or have been taken out of that just now and go there again.
    pub(crate) unsafe fn set_taken_as_dead(&self) {
        // SAFETY: The lock is held by the contract of this function, and the flag names no list.
        unsafe { self.set(ParkedFlag::TimedOut, true) };
    }

    /// Marks the request as counted by its source, or as not counted: it moves to another list.
    ///
    /// # Safety
    ///
    /// `self` must just have been taken out of its list. The caller must have held the lock of the
    /// parking listener since, and before dropping the lock put `self` into the list that the flag
    /// names, or, if it is not counted, leave it in no list: `ParkQueue::remove()` takes the flag
    /// for the list.
    pub(crate) unsafe fn set_counted(&self, counted: bool) {
        // SAFETY: The lock is held, and the entry moves to the list that the flag names, by the
        // contract of this function.
        unsafe { self.set(ParkedFlag::Counted, counted) };
    }

    /// Records whether the request is taken off the listener's count of young requests.
    ///
    /// # Safety
    ///
    /// `self` must be in the queue of the parking listener, whose lock the caller holds.
    pub(crate) unsafe fn set_young(&self, young: bool) {
        // SAFETY: The lock is held by the contract of this function, and the flag names no
        // list.
        unsafe { self.set(ParkedFlag::Young, young) };
    }

    /// Sets or clears a flag.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock of the parking listener: the flags are read and written in two
    /// steps. `self` must be in the list that [`ParkedFlag::TimerArmed`], [`ParkedFlag::Counted`]
    /// and [`ParkedFlag::Died`] name, or in no list, when the lock is dropped.
    unsafe fn set(&self, flag: ParkedFlag, value: bool) {
        let flags = self.flags().with(flag, value);
        self.ack.state.store(flags.0, Relaxed);
    }
}
