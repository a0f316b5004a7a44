// SPDX-License-Identifier: GPL-2.0-only

//! What a request keeps while it is parked.

use core::ptr::NonNull;

use kernel::{
    alloc::flags::{
        __GFP_NOWARN,
        GFP_ATOMIC, //
    },
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
    bindings,
    reqsk::{
        RequestSock,
        RoundTrip, //
    },
    tcp_segment::{
        TcpSegment,
        Timestamps, //
    }, //
};

/// What a request keeps while it is parked: 64 bytes, with the reference count of its `Arc`.
#[pin_data]
pub(crate) struct ParkedRequest {
    #[pin]
    links: ListLinks,
    ack: AckInfo,
}

/// What is to be known of a parked request.
///
/// The atomics are written under the home's lock only, with no ordering of their own.
pub(crate) struct AckInfo {
    /// The request that owns this. Alive while this is in the queue, under the lock.
    request: NonNull<bindings::request_sock>,
    parked_at: Nanos,
    /// The round-trip time that the first bare ACK showed, if it is known.
    round_trip: Option<RoundTrip>,
    /// [`RequestSock::write_seq`] when it was about to be parked.
    write_seq: u32,
    /// TSval of the last bare ACK; means nothing without [`ParkedRequest::HAS_TSVAL`].
    tsval: Atomic<u32>,
    /// Window of the last bare ACK, and flags.
    state: Atomic<u32>,
}

impl AckInfo {
    /// Of no request: to be replaced before anybody asks.
    fn vacant() -> Self {
        Self {
            request: NonNull::dangling(),
            parked_at: Nanos(0),
            round_trip: None,
            write_seq: 0,
            tsval: Atomic::new(0),
            state: Atomic::new(0),
        }
    }

    /// Of `request`, whose bare ACK `segment` is.
    #[inline]
    pub(crate) fn new(
        request: &RequestSock<'_>,
        segment: &TcpSegment<'_>,
        parked_at: Nanos,
    ) -> Self {
        let timestamps = segment.timestamps(request);
        Self {
            request: request.as_non_null(),
            parked_at,
            round_trip: request.round_trip(parked_at, timestamps),
            write_seq: request.write_seq(),
            tsval: Atomic::new(timestamps.map_or(0, |timestamps| timestamps.value)),
            state: Atomic::new(ParkedRequest::window_flags(segment.window(), timestamps)),
        }
    }

    /// Of a request that goes into this list or that, and is young or becomes it later.
    #[inline]
    pub(crate) fn begin(mut self, is_timer_armed: bool, is_young: bool) -> Self {
        let fresh = if is_timer_armed {
            ParkedFlags::TIMER_ARMED
        } else {
            0
        };
        let young = if is_young { ParkedFlags::YOUNG } else { 0 };
        *self.state.get_mut() |= fresh | young;
        self
    }
}

// SAFETY: `request` is only followed under the home's lock.
unsafe impl Send for AckInfo {}
// SAFETY: as above; the other fields are constant, or atomic.
unsafe impl Sync for AckInfo {}

/// Where a parked request stands, all read at once.
#[derive(Clone, Copy)]
pub(crate) struct ParkedFlags(u32);

impl ParkedFlags {
    const TIMED_OUT: u32 = 1 << 17;
    const EVICTED: u32 = 1 << 18;
    const YOUNG: u32 = 1 << 19;
    const ACCEPT: u32 = 1 << 20;
    const TIMER_ARMED: u32 = 1 << 22;

    /// One that is due, but not to be accepted, waits for that.
    pub(crate) fn phase(self) -> Phase {
        if self.has(Self::ACCEPT) {
            Phase::Expired
        } else {
            Phase::Parked
        }
    }

    /// Why its time is up, if it is.
    pub(crate) fn expired(self) -> Option<Expiry> {
        if self.has(Self::TIMED_OUT) {
            Some(Expiry::Timeout)
        } else if self.has(Self::EVICTED) {
            Some(Expiry::Eviction)
        } else {
            None
        }
    }

    /// Was the request taken off the listener's count of young ones?
    pub(crate) fn is_young(self) -> bool {
        self.has(Self::YOUNG)
    }

    /// Is it in the list of those whose own timers may still run?
    pub(crate) fn is_timer_armed(self) -> bool {
        self.has(Self::TIMER_ARMED)
    }

    fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for ParkedRequest { untracked; }
}
impl_list_item! {
    impl ListItem<0> for ParkedRequest { using ListLinks { self.links }; }
}

impl ParkedRequest {
    const WINDOW: u32 = 0xffff;
    const HAS_TSVAL: u32 = 1 << 16;
    const REFUSED: u32 = 1 << 21;

    /// A new one, of no request yet, from memory that may be had without sleeping.
    #[cold]
    pub(crate) fn new() -> Result<Pin<UniqueArc<Self>>> {
        UniqueArc::pin_init(
            try_pin_init!(Self {
                links <- ListLinks::new(),
                ack: AckInfo::vacant(),
            }? Error),
            GFP_ATOMIC | __GFP_NOWARN,
        )
    }

    /// Makes one that nobody else has the request's that `facts` are of.
    #[inline]
    pub(crate) fn fill(mut this: Pin<UniqueArc<Self>>, ack: AckInfo) -> ListArc<Self> {
        *this.as_mut().project().ack = ack;
        ListArc::from(this)
    }

    /// What `state` says of a bare ACK.
    fn window_flags(window: u16, timestamps: Option<Timestamps>) -> u32 {
        let has_tsval = if timestamps.is_some() {
            Self::HAS_TSVAL
        } else {
            0
        };
        u32::from(window) | has_tsval
    }

    /// Remembers the client's last bare ACK.
    pub(crate) fn set_last_ack(&self, request: &RequestSock<'_>, segment: &TcpSegment<'_>) {
        let timestamps = segment.timestamps(request);
        if let Some(timestamps) = timestamps {
            self.ack.tsval.store(timestamps.value, Relaxed);
        }
        let state = self.ack.state.load(Relaxed) & !Self::WINDOW;
        self.ack.state.store(
            state | Self::window_flags(segment.window(), timestamps),
            Relaxed,
        );
    }

    /// The request.
    ///
    /// # Safety
    ///
    /// This is in the queue of its home, whose lock is held for as long as the request is used.
    pub(crate) unsafe fn request(&self) -> RequestSock<'_> {
        // SAFETY: it was in memory when it was parked, with its listener; before it goes, its destructor takes this out
        // of the queue, under the lock.
        unsafe { RequestSock::from_raw(self.ack.request) }
    }

    /// When it was parked.
    pub(crate) fn parked_at(&self) -> Nanos {
        self.ack.parked_at
    }

    /// The round-trip time of the handshake, if it is known.
    pub(crate) fn round_trip(&self) -> Option<RoundTrip> {
        self.ack.round_trip
    }

    /// The next sequence number of the listener's socket then.
    pub(crate) fn write_seq(&self) -> u32 {
        self.ack.write_seq
    }

    /// The window of the last bare ACK: not scaled.
    pub(crate) fn window(&self) -> u16 {
        (self.ack.state.load(Relaxed) & Self::WINDOW) as u16
    }

    /// TSval of the last bare ACK, if it had one.
    pub(crate) fn tsval(&self) -> Option<u32> {
        self.has(Self::HAS_TSVAL)
            .then(|| self.ack.tsval.load(Relaxed))
    }

    /// Where the request stands.
    pub(crate) fn flags(&self) -> ParkedFlags {
        ParkedFlags(self.ack.state.load(Relaxed))
    }

    /// Its time is up, and what becomes of it; or it is to wait on.
    pub(crate) fn set_expired(&self, expired: Option<(Expiry, OnTimeout)>) {
        let (expiry, on_timeout) = expired.unzip();
        self.set(ParkedFlags::TIMED_OUT, expiry == Some(Expiry::Timeout));
        self.set(ParkedFlags::EVICTED, expiry == Some(Expiry::Eviction));
        self.set(ParkedFlags::ACCEPT, on_timeout == Some(OnTimeout::Accept));
    }

    /// It should have been accepted, and was refused. Was it so before?
    pub(crate) fn refuse(&self) -> bool {
        let before = self.has(Self::REFUSED);
        self.set(Self::REFUSED, true);
        before
    }

    /// The request's own timer has been put off, and it goes into the other list.
    pub(crate) fn set_timer_deferred(&self) {
        self.set(ParkedFlags::TIMER_ARMED, false);
    }

    /// The request was taken off the listener's count of young ones, or put back on it.
    pub(crate) fn set_young(&self, young: bool) {
        self.set(ParkedFlags::YOUNG, young);
    }

    fn has(&self, flag: u32) -> bool {
        self.ack.state.load(Relaxed) & flag != 0
    }

    #[inline]
    fn set(&self, flag: u32, value: bool) {
        let state = self.ack.state.load(Relaxed) & !flag;
        self.ack
            .state
            .store(if value { state | flag } else { state }, Relaxed);
    }
}
