// SPDX-License-Identifier: GPL-2.0-only

//! What a request keeps while it is parked.

use core::ptr::NonNull;

use kernel::{
    alloc::flags::{__GFP_NOWARN, GFP_ATOMIC},
    list::{impl_list_arc_safe, impl_list_item, ListArc, ListLinks},
    prelude::*,
    sync::atomic::{ordering::Relaxed, Atomic},
};

use crate::policy::{Expiry, Nanos, OnTimeout, Phase};

use super::{bindings, request::Request, segment::Segment, wire::Timestamps};

/// What a request keeps while it is parked: 56 bytes, with the reference count of its `Arc`.
///
/// The atomics are written under the home's lock only, with no ordering of their own.
#[pin_data]
pub(crate) struct Parked {
    #[pin]
    links: ListLinks,
    /// The request that owns this. Alive while this is in the queue, under the lock.
    request: NonNull<bindings::request_sock>,
    parked_at: Nanos,
    /// The round-trip time that the first bare ACK showed, in microseconds.
    rtt_us: Option<u32>,
    /// TSval of the last bare ACK; means nothing without [`Self::HAS_TSVAL`].
    tsval: Atomic<u32>,
    /// Window of the last bare ACK, and the flags below.
    state: Atomic<u32>,
}

// SAFETY: `request` is only followed under the home's lock.
unsafe impl Send for Parked {}
// SAFETY: as above; the other fields are constant, atomic, or the list's.
unsafe impl Sync for Parked {}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Parked { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Parked { using ListLinks { self.links }; }
}

impl Parked {
    const WINDOW: u32 = 0xffff;
    const HAS_TSVAL: u32 = 1 << 16;
    const TIMED_OUT: u32 = 1 << 17;
    const EVICTED: u32 = 1 << 18;
    const YOUNG: u32 = 1 << 19;
    const LET_IN: u32 = 1 << 20;
    const REFUSED: u32 = 1 << 21;

    /// For `request`, whose bare ACK `segment` is.
    pub(crate) fn new(
        request: &Request<'_>,
        segment: &Segment<'_>,
        parked_at: Nanos,
    ) -> Result<ListArc<Self>> {
        let request_ptr = NonNull::new(request.as_ptr()).ok_or(EINVAL)?;
        let timestamps = segment.timestamps(request);
        let rtt_us = request.synack_rtt_us(parked_at, timestamps);
        ListArc::pin_init(
            try_pin_init!(Self {
                links <- ListLinks::new(),
                request: request_ptr,
                parked_at: parked_at,
                rtt_us: rtt_us,
                tsval: Atomic::new(timestamps.map_or(0, |timestamps| timestamps.value)),
                state: Atomic::new(Self::window_bits(segment.window(), timestamps)),
            }? Error),
            GFP_ATOMIC | __GFP_NOWARN,
        )
    }

    /// What `state` says of a bare ACK.
    fn window_bits(window: u16, timestamps: Option<Timestamps>) -> u32 {
        let has_tsval = if timestamps.is_some() {
            Self::HAS_TSVAL
        } else {
            0
        };
        u32::from(window) | has_tsval
    }

    /// Remembers the client's last bare ACK.
    pub(crate) fn remember(&self, request: &Request<'_>, segment: &Segment<'_>) {
        let timestamps = segment.timestamps(request);
        if let Some(timestamps) = timestamps {
            self.tsval.store(timestamps.value, Relaxed);
        }
        let state = self.state.load(Relaxed) & !Self::WINDOW;
        self.state.store(
            state | Self::window_bits(segment.window(), timestamps),
            Relaxed,
        );
    }

    /// The request.
    ///
    /// # Safety
    ///
    /// This is in the queue of its home, whose lock is held for as long as the request is used.
    pub(crate) unsafe fn request(&self) -> Request<'_> {
        // SAFETY: it was in memory when it was parked, with its listener; before it goes, its destructor takes this out
        // of the queue, under the lock.
        unsafe { Request::from_raw(self.request) }
    }

    /// When it was parked.
    pub(crate) fn parked_at(&self) -> Nanos {
        self.parked_at
    }

    /// The round-trip time of the handshake in microseconds, if it is known.
    pub(crate) fn rtt_us(&self) -> Option<u32> {
        self.rtt_us
    }

    /// The window of the last bare ACK: not scaled.
    pub(crate) fn window(&self) -> u16 {
        (self.state.load(Relaxed) & Self::WINDOW) as u16
    }

    /// TSval of the last bare ACK, if it had one.
    pub(crate) fn tsval(&self) -> Option<u32> {
        self.has(Self::HAS_TSVAL).then(|| self.tsval.load(Relaxed))
    }

    /// Where the request stands. One that is due, but not to be accepted, waits for that.
    pub(crate) fn phase(&self) -> Phase {
        if self.has(Self::LET_IN) {
            Phase::Due
        } else {
            Phase::Parked
        }
    }

    /// Why its time is up, if it is.
    pub(crate) fn due(&self) -> Option<Expiry> {
        if self.has(Self::TIMED_OUT) {
            Some(Expiry::Timeout)
        } else if self.has(Self::EVICTED) {
            Some(Expiry::Eviction)
        } else {
            None
        }
    }

    /// Its time is up, and what becomes of it; or it is to wait on.
    pub(crate) fn set_due(&self, due: Option<(Expiry, OnTimeout)>) {
        let (expiry, on_timeout) = due.unzip();
        self.set(Self::TIMED_OUT, expiry == Some(Expiry::Timeout));
        self.set(Self::EVICTED, expiry == Some(Expiry::Eviction));
        self.set(Self::LET_IN, on_timeout == Some(OnTimeout::Accept));
    }

    /// It should have been accepted, and was refused. Was it so before?
    pub(crate) fn refuse(&self) -> bool {
        let before = self.has(Self::REFUSED);
        self.set(Self::REFUSED, true);
        before
    }

    /// Was the request taken off the listener's count of young ones?
    pub(crate) fn is_young(&self) -> bool {
        self.has(Self::YOUNG)
    }

    /// The request was taken off that count, or put back on it.
    pub(crate) fn set_young(&self, young: bool) {
        self.set(Self::YOUNG, young);
    }

    fn has(&self, flag: u32) -> bool {
        self.state.load(Relaxed) & flag != 0
    }

    fn set(&self, flag: u32, value: bool) {
        let state = self.state.load(Relaxed) & !flag;
        self.state
            .store(if value { state | flag } else { state }, Relaxed);
    }
}
