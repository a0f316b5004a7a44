// SPDX-License-Identifier: GPL-2.0-only

//! A connection request, and what parking changes in it.
//!
//! Four fields tell that a request is parked. All are written under the lock of its home (the [`Listener`] of
//! `req->rsk_listener`), or by the request's own destructor:
//!
//! | field | while parked | otherwise |
//! | --- | --- | --- |
//! | `rsk_ops` | the overlay's | the kernel's |
//! | `af_specific` | the overlay's | the kernel's |
//! | `dl_next` | its [`ParkedRequest`] | unused in SYN_RECV |
//! | `sk` | its mark: its address, and its home's key | NULL in SYN_RECV |
//!
//! Besides, a parked request is acked (`inet_rsk(req)->acked`), from before it is parked, as the kernel makes it when it drops an
//! ACK; it stays so. Who finds a request not acked need not ask whether it is parked.
//!
//! The last of the table is what tells a parked request from a copy of one. `inet_reqsk_clone()` copies all four, and the copy,
//! which we never see made, must not be taken for the original: it is at another address, so that its `sk` is not its mark. Nor
//! must a copy of that copy, which may well be where the original was: but it is made for a third listener, whose key is
//! another one. The kernel reads `dl_next` and `sk` only of requests in an accept queue (and of Fast Open's, which are never
//! parked), and `inet_csk_reqsk_queue_add()` writes both when a request enters it.
//!
//! [`Listener`]: super::listener::Listener

use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::prelude::*;

use crate::policy::{
    self,
    Bypass,
    Nanos, //
};

use super::{
    bindings,
    tcp_segment::{
        BareAck,
        Timestamps, //
    }, //
};

/// As far in the future as a timer can be set, in jiffies. The wheel cuts it to `WHEEL_TIMEOUT_MAX`: 49 days at HZ=250, 12
/// at HZ=1000.
const DEFERRED_JIFFIES: usize = 1 << 30;

/// The length of a jiffy.
const NANOS_PER_JIFFY: u64 = 1_000_000_000 / bindings::ACCF_HZ as u64;

/// IRS of a request, be it one without a listener.
///
/// # Safety
///
/// `req` must point to a `struct tcp_request_sock` that is alive, and not be written to.
pub(crate) unsafe fn client_isn(req: *const bindings::request_sock) -> u32 {
    // A `struct request_sock` is the first member of `inet_request_sock`, and that of `tcp_request_sock`.
    // SAFETY: by the contract of this function.
    unsafe { (*req.cast::<bindings::tcp_request_sock>()).rcv_isn }
}

/// The listener of a request, NULL for one made from a cookie.
///
/// # Safety
///
/// `req` must be alive.
pub(crate) unsafe fn listener_sock(req: *const bindings::request_sock) -> *mut bindings::sock {
    // SAFETY: that is where it is; and it does not change any more once others can find the request.
    unsafe {
        req.byte_add(bindings::ACCF_REQ_LISTENER as usize)
            .cast::<*mut bindings::sock>()
            .read()
    }
}

/// The round-trip time of a handshake that was completed.
#[derive(Clone, Copy)]
pub(crate) enum RoundTrip {
    /// From the SYN-ACK, of which the request knows when it was sent.
    SinceSynAck,
    /// So many microseconds.
    Micros(u32),
}

/// A TCP connection request (`struct request_sock`).
///
/// # Invariants
///
/// `ptr` points to a `struct tcp_request_sock` that is alive for `'a`: somebody holds a reference to it, or it is being
/// destroyed by the caller. It has a listener (it is no syncookie's), to which it holds a reference.
///
/// `listener` is its `rsk_listener`, which is written before the request can be found, and not after.
#[derive(Clone, Copy)]
pub(crate) struct RequestSock<'a> {
    ptr: NonNull<bindings::request_sock>,
    listener: *mut bindings::sock,
    _request: PhantomData<&'a bindings::request_sock>,
}

impl<'a> RequestSock<'a> {
    /// Wraps the kernel's pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the type's invariants for `'a`.
    pub(crate) unsafe fn from_raw(ptr: NonNull<bindings::request_sock>) -> Self {
        // SAFETY: by the contract of this function.
        let listener = unsafe { listener_sock(ptr.as_ptr()) };
        // INVARIANT: by the contract of this function.
        Self {
            ptr,
            listener,
            _request: PhantomData,
        }
    }

    /// The kernel's pointer.
    pub(crate) fn as_ptr(&self) -> *mut bindings::request_sock {
        self.ptr.as_ptr()
    }

    /// The kernel's pointer, which is never NULL.
    pub(crate) fn as_non_null(&self) -> NonNull<bindings::request_sock> {
        self.ptr
    }

    /// `tcp_rsk(req)`.
    pub(super) fn tcp(&self) -> *mut bindings::tcp_request_sock {
        // A `struct request_sock` is the first member of `inet_request_sock`, and that of `tcp_request_sock`.
        self.as_ptr().cast()
    }

    /// `inet_rsk(req)`.
    fn inet(&self) -> *mut bindings::inet_request_sock {
        self.as_ptr().cast()
    }

    /// The family of its packets: `AF_INET` also for a v4-mapped client.
    pub(crate) fn family(&self) -> i32 {
        // SAFETY: a request's operations are valid, and constant (also the overlay's).
        unsafe { (*self.ops()).family }
    }

    /// `req->rsk_ops`.
    pub(crate) fn ops(&self) -> *const bindings::request_sock_ops {
        // SAFETY: the request is alive by the type invariants. The read is a `READ_ONCE()`: another CPU may park the
        // request or undo that.
        unsafe { ptr::read_volatile(&raw const (*self.as_ptr()).rsk_ops) }
    }

    /// `tcp_rsk(req)->af_specific`.
    pub(crate) fn tcp_ops(&self) -> *const bindings::tcp_request_sock_ops {
        // SAFETY: as in `ops()`.
        unsafe { ptr::read_volatile(&raw const (*self.tcp()).af_specific) }
    }

    /// The listener it was made for. Lives as long as the request.
    pub(crate) fn listener_sock(&self) -> *mut bindings::sock {
        self.listener
    }

    /// IRS: the client's initial sequence number.
    pub(crate) fn client_isn(&self) -> u32 {
        // SAFETY: alive by the type invariants; written before the request could be found, and not after.
        unsafe { client_isn(self.as_ptr()) }
    }

    /// Did both ends agree on timestamps?
    pub(crate) fn uses_timestamps(&self) -> bool {
        // SAFETY: as in `client_isn()`.
        unsafe { (*self.inet()).tstamp_ok() != 0 }
    }

    /// Was data, or a cookie, accepted with the SYN?
    pub(crate) fn is_fast_open(&self) -> bool {
        // SAFETY: as in `client_isn()`.
        unsafe { (*self.tcp()).tfo_listener }
    }

    /// Does it belong to an MPTCP connection?
    pub(crate) fn is_mptcp(&self) -> bool {
        // SAFETY: as in `client_isn()`.
        unsafe { (*self.tcp()).is_mptcp }
    }

    /// Is it still in the table of connections? Once it is out, it never comes back.
    pub(crate) fn is_hashed(&self) -> bool {
        // SAFETY: alive by the type invariants.
        unsafe { bindings::accf_req_is_hashed(self.as_ptr()) }
    }

    /// Has somebody begun to park it, or has the kernel dropped an ACK of its client: for want of room in the accept queue, or
    /// because of `TCP_DEFER_ACCEPT`, before we took that over?
    ///
    /// There is a full barrier between what was done before, and this look.
    pub(crate) fn was_acked(&self) -> bool {
        // SAFETY: alive by the type invariants. Another CPU may be setting this one bit, and either value will do.
        unsafe { bindings::accf_req_was_acked(self.as_ptr()) }
    }

    /// Marks it as one whose SYN-ACK was acknowledged, as the kernel does when we make no connection. Fails if, after a full
    /// barrier, it turns out that it must not be parked: it is not in the table any more, its listener has stopped, or it checks
    /// signatures. One that listens then does so still, or again, since [`Self::write_seq`] was read.
    ///
    /// Under the lock of its home.
    pub(crate) fn set_acked(&self) -> Result<(), Bypass> {
        // SAFETY: alive by the type invariants, and so is its listener. Whoever else writes this bit sets it, too; who writes
        // another one of its byte writes this one back as it was, which is what listeners with a key are looked for.
        let found = unsafe { bindings::accf_req_set_acked(self.listener_sock(), self.as_ptr()) };
        match found {
            0 => Ok(()),
            bindings::ACCF_IS_SIGNED => Err(Bypass::Signed),
            _ => Err(Bypass::Other),
        }
    }

    /// How often its own timer has fired. While it has not, the kernel counts the request as young.
    pub(crate) fn timeouts(&self) -> u8 {
        // SAFETY: alive by the type invariants. Written by its timer's handler alone.
        unsafe { (*self.as_ptr()).num_timeout() }
    }

    /// May its own timer run on while it is parked (`policy::may_synack_timer_run()`)?
    #[inline(always)]
    pub(crate) fn may_synack_timer_run(&self) -> bool {
        // SAFETY: alive by the type invariants, with its listener.
        let synack = unsafe { bindings::accf_req_synack_timer(self.as_ptr()) };
        // It is never negative, and no timer is set to more than `DEFERRED_JIFFIES`.
        let left = Nanos(u64::from(synack.left as u32).saturating_mul(NANOS_PER_JIFFY));
        policy::may_synack_timer_run(synack.timeouts, synack.max_timeouts, left)
    }

    /// Would the kernel move it there now, should its own have stopped?
    pub(crate) fn can_migrate(&self) -> bool {
        // SAFETY: alive by the type invariants, with its listener and its namespace.
        unsafe { bindings::accf_req_can_migrate(self.as_ptr()) }
    }

    /// Does its listener listen, or has it stopped?
    pub(crate) fn is_listener_active(&self) -> bool {
        // SAFETY: alive by the type invariants, with its listener.
        let state = u32::from(unsafe { bindings::accf_sk_state(self.listener_sock()) });
        state == bindings::ACCF_TCP_LISTEN
    }

    /// The next sequence number of its listener's socket, which nothing moves while that listens.
    #[inline]
    pub(crate) fn write_seq(&self) -> u32 {
        let tp = self.listener_sock().cast::<bindings::tcp_sock>();
        // SAFETY: alive by the type invariants, with its listener, a TCP socket. The read is a `READ_ONCE()`.
        unsafe { ptr::read_volatile(&raw const (*tp).write_seq) }
    }

    /// Was a connection made of it? Looks into the table of connections.
    pub(crate) fn is_connected(&self) -> bool {
        // SAFETY: alive by the type invariants, with its listener and its namespace.
        unsafe { bindings::accf_req_is_connected(self.as_ptr()) }
    }

    /// Has the kernel drop it: takes it out of the table and stops its timer (`inet_csk_reqsk_queue_drop()`), unless
    /// somebody has done so before. Nothing is sent.
    ///
    /// Waits for its timer's handler, so no lock may be held that is taken there.
    pub(crate) fn drop_from_table(&self) {
        // SAFETY: alive by the type invariants. For a request that is all that `tcp_abort()` does.
        unsafe { bindings::tcp_abort(self.as_ptr().cast(), ECONNABORTED.to_errno()) };
    }

    /// The round-trip time that the kernel would take if it completed the handshake `now`, by a segment with these timestamps:
    /// from our first SYN-ACK (`tcp_synack_rtt_meas()`), and if that was sent again, from the timestamp
    /// (`tcp_ack_update_rtt()`).
    #[inline]
    pub(crate) fn round_trip(
        &self,
        now: Nanos,
        timestamps: Option<Timestamps>,
    ) -> Option<RoundTrip> {
        // SAFETY: alive by the type invariants. The read is a `READ_ONCE()`.
        if unsafe { ptr::read_volatile(&raw const (*self.as_ptr()).num_retrans) } == 0 {
            return Some(RoundTrip::SinceSynAck);
        }
        match timestamps {
            Some(Timestamps { echo, .. }) if echo != 0 => {
                // SAFETY: as above.
                let rtt_us =
                    unsafe { bindings::accf_echoed_rtt_us(self.as_ptr(), now.micros(), echo) };
                Some(RoundTrip::Micros(rtt_us))
            }
            _ => None,
        }
    }

    /// Makes `tcp_synack_rtt_meas()` take the round-trip time that was seen when the handshake was completed, which `waited` has
    /// passed since, `now` being now.
    ///
    /// # Safety
    ///
    /// The caller has taken the request out of the table to make a connection of it (`own_req`), which exists: so nobody
    /// else looks at what is written, but `tcp_synack_rtt_meas()` of one that came second and has made a connection in vain.
    #[inline]
    pub(crate) unsafe fn set_round_trip(&self, round_trip: RoundTrip, waited: Nanos, now: Nanos) {
        // SAFETY: alive by the type invariants; nobody else writes, by the contract of this function.
        unsafe {
            match round_trip {
                RoundTrip::SinceSynAck => {
                    let sent = &raw mut (*self.tcp()).snt_synack;
                    // 0 means that nobody knows.
                    if *sent != 0 {
                        *sent += waited.micros();
                    }
                    // Should its timer's handler have sent another one while it was being parked.
                    (*self.as_ptr()).num_retrans = 0;
                }
                RoundTrip::Micros(rtt_us) => {
                    bindings::accf_set_synack_rtt_us(self.as_ptr(), rtt_us, now.micros());
                }
            }
        }
    }

    /// Takes a reference, unless the request is dying.
    pub(crate) fn get(&self) -> Option<RequestRef> {
        // SAFETY: alive by the type invariants.
        let taken = unsafe { bindings::accf_req_get(self.as_ptr()) };
        // INVARIANT: the reference just taken is the owned one. (Not `then_some()`: what is made must not be dropped.)
        taken.then(|| RequestRef(self.ptr))
    }

    /// Is its own timer waiting to fire? Not while the timer's handler runs.
    pub(crate) fn timer_is_pending(&self) -> bool {
        // SAFETY: alive by the type invariants; the timer was set up before the request could be found.
        unsafe { bindings::accf_timer_pending(&raw const (*self.as_ptr()).rsk_timer) }
    }

    /// Moves its own timer to `jiffies` from now. `false`, and nothing changed, where the timer is not pending: its
    /// handler is running, or the request is dying.
    fn modify_pending_timer(&self, jiffies: usize) -> bool {
        // SAFETY: as in `timer_is_pending()`; the call takes the timer's own lock.
        unsafe {
            bindings::mod_timer_pending(
                &raw mut (*self.as_ptr()).rsk_timer,
                bindings::accf_jiffies().wrapping_add(jiffies),
            ) != 0
        }
    }

    /// Puts its own timer off for weeks, so that it does no harm while the request is parked.
    ///
    /// The timer stays pending, as whoever drops the request takes the timer's reference by deleting it.
    #[inline]
    pub(crate) fn defer_timer(&self) -> bool {
        self.modify_pending_timer(DEFERRED_JIFFIES)
    }

    /// Lets its own timer fire in so many jiffies: the kernel decides what becomes of the request.
    pub(crate) fn expire_timer_in(&self, jiffies: usize) {
        // If it is not pending, it has fired already, or the request is dying.
        self.modify_pending_timer(jiffies);
    }

    /// Undoes the count of timeouts, so that the timer's handler never finds that there were too many; and has it set the
    /// timer to as late as it ever does.
    ///
    /// Only for `send_synack` called by that handler (`reqsk_timer_handler()`): afterwards it counts this timeout, and
    /// the request as no longer young if it was the first. So it is young again now.
    ///
    /// # Safety
    ///
    /// The caller holds the lock of the request's home, and is called by the timer's handler, the only one to count.
    pub(crate) unsafe fn reset_timeouts(&self) {
        let req = self.as_ptr();
        // SAFETY: alive by the type invariants, and so is the listener. `num_timeout` is written by the timer's handler
        // alone, which waits for us; it shares its byte with `syncookie`, which does not change any more.
        unsafe {
            if (*req).num_timeout() != 0 {
                (*req).set_num_timeout(0);
                bindings::accf_young_add(self.listener_sock(), 1);
            }
            // Doubled for each timeout that is counted, and cut to the largest RTO.
            ptr::write_volatile(&raw mut (*req).timeout, bindings::accf_rto_max());
        }
    }

    /// Notes that a segment with the timestamp of this moment went out: the client may echo it.
    pub(crate) fn note_tsval_sent(&self) {
        // SAFETY: alive by the type invariants. The write is a `WRITE_ONCE()`, of a value that only grows, as those of
        // other CPUs are.
        unsafe { bindings::accf_req_note_tsval_sent(self.as_ptr()) };
    }

    /// Both ends, as they stand on the wire.
    pub(crate) fn endpoints(&self) -> bindings::accf_endpoints {
        let mut ends = bindings::accf_endpoints::default();
        // SAFETY: alive by the type invariants; the addresses were written before the request could be found.
        unsafe { bindings::accf_req_endpoints(self.as_ptr(), &mut ends) };
        ends
    }

    /// The client's bare ACK, with this window and, where timestamps are used, this TSval.
    pub(crate) fn bare_ack(&self, window: u16, tsval: Option<u32>) -> BareAck {
        let tcp = self.tcp();
        // SAFETY: alive by the type invariants. The numbers do not change; the kernel reads `snt_tsval_last`, which
        // does, with a `READ_ONCE()` too.
        let (seq, ack, echo) = unsafe {
            (
                (*tcp).rcv_isn.wrapping_add(1),
                (*tcp).snt_isn.wrapping_add(1),
                ptr::read_volatile(&raw const (*tcp).snt_tsval_last),
            )
        };
        BareAck {
            seq,
            ack,
            window,
            timestamps: tsval.map(|value| Timestamps { value, echo }),
        }
    }
}

/// A reference to a request.
///
/// # Invariants
///
/// Owns one of the request's references.
pub(crate) struct RequestRef(NonNull<bindings::request_sock>);

impl RequestRef {
    /// The request.
    pub(crate) fn as_request(&self) -> RequestSock<'_> {
        // SAFETY: alive by the reference. Only requests with a listener were parked, and only those are wrapped.
        unsafe { RequestSock::from_raw(self.0) }
    }
}

impl Drop for RequestRef {
    fn drop(&mut self) {
        // SAFETY: gives up the reference owned by the type invariants. `sock_gen_put()` stands for `reqsk_put()`,
        // which needs a function that is not exported; both do the same for a request.
        unsafe { bindings::sock_gen_put(self.0.as_ptr().cast()) };
    }
}
