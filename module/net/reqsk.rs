// SPDX-License-Identifier: GPL-2.0-only

//! A connection request (`struct request_sock`): its fields and its SYN-ACK timer.
//!
//! Parking is none of its business: `reqsk_ops` has what changes in a parked request.

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
    bindings::{
        self,
        accf_arrival, //
    },
    listen_sock::ListenSock,
    rcu::ReadSide,
    tcp_segment::{
        BareAck,
        TcpSegment,
        Timestamps, //
    }, //
};

/// How far a SYN-ACK timer is deferred, in jiffies: further than any timer can be set. The timer
/// wheel caps it at `WHEEL_TIMEOUT_MAX`, which is 49 days at HZ=250 and 12 days at HZ=1000.
const DEFERRED_JIFFIES: usize = 1 << 30;

/// The length of a jiffy in nanoseconds.
const NANOS_PER_JIFFY: u64 = 1_000_000_000 / bindings::ACCF_HZ as u64;

/// Returns a time in jiffies, rounded up.
fn jiffies(time: Nanos) -> usize {
    usize::try_from(time.0.div_ceil(NANOS_PER_JIFFY)).unwrap_or(DEFERRED_JIFFIES)
}

/// Returns the time that is a number of jiffies.
pub(crate) fn from_jiffies(jiffies: u32) -> Nanos {
    Nanos(u64::from(jiffies) * NANOS_PER_JIFFY)
}

/// Returns IRS, the client's initial sequence number, of a request with or without a listener.
///
/// # Safety
///
/// `req` must point to a `struct tcp_request_sock` that is alive, and whose `rcv_isn` is not being
/// written.
pub(crate) unsafe fn client_isn(req: *const bindings::request_sock) -> u32 {
    // A `struct request_sock` is the first member of `inet_request_sock`, which is the first one of
    // `tcp_request_sock`.
    // SAFETY: By the contract of this function.
    unsafe { (*req.cast::<bindings::tcp_request_sock>()).rcv_isn }
}

/// Returns the listener of a request, or NULL if the request was made from a cookie.
///
/// # Safety
///
/// `req` must be alive.
unsafe fn listener_sock(req: *const bindings::request_sock) -> *mut bindings::sock {
    // SAFETY: The request is alive by the contract of this function, and `ACCF_REQ_LISTENER` is the
    // offset of `rsk_listener` in it, which does not change once other code can find the request.
    unsafe {
        req.byte_add(bindings::ACCF_REQ_LISTENER as usize)
            .cast::<*mut bindings::sock>()
            .read()
    }
}

/// The round-trip time of a completed handshake.
#[derive(Clone, Copy)]
pub(crate) enum RoundTrip {
    /// The time since the SYN-ACK was sent, which the request stores (`snt_synack`).
    SinceSynAck,
    /// This many microseconds.
    Micros(u32),
}

/// What is kept of a client's bare ACK while its request is parked.
pub(crate) struct KeptAck {
    /// The window of the last one, not scaled.
    pub(crate) window: u16,
    /// TSval of the last one, if it had one.
    pub(crate) tsval: Option<u32>,
    /// Whether the first one echoed the timestamp of the first SYN-ACK, of several.
    pub(crate) echoes_first: bool,
    /// Whether the first one said that the SYN-ACK came twice.
    pub(crate) has_dsack: bool,
    /// What IP said of the first one.
    pub(crate) arrival: accf_arrival,
    /// AE, CWR and ECE of the first one.
    pub(crate) ace: u8,
}

/// A source of clients: an IPv4 address, also of a v4-mapped client, or the first 64 bits of an
/// IPv6 address; the number is in host order.
///
/// No IPv6 address that is routed begins with 32 zero bits, so the two do not mix. Source 0 is that
/// of `::1`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source(u64);

impl Source {
    /// Returns its number.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Returns its IPv6 address: an IPv4-mapped one, or the first of the /64.
    pub(crate) fn address(self) -> [u8; 16] {
        let mut address = [0; 16];
        match u32::try_from(self.0) {
            Ok(v4) if v4 != 0 => {
                address[10..12].fill(0xff);
                address[12..].copy_from_slice(&v4.to_be_bytes());
            }
            _ => address[..8].copy_from_slice(&self.0.to_be_bytes()),
        }
        address
    }
}

/// A TCP connection request (`struct request_sock`).
///
/// # Invariants
///
/// `ptr` points to a `struct tcp_request_sock` that is in memory for `'a`: a reference to it is
/// held, or the code that uses this is its destructor, or it was parked and the lock of its
/// listener is held, for which its destructor has to wait. It has a listener (it was not made from
/// a syncookie), to which it holds a reference.
///
/// `listener` is its `rsk_listener`, which does not change once other code can find the request.
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
        // SAFETY: The request is alive by the contract of this function.
        let listener = unsafe { listener_sock(ptr.as_ptr()) };
        // INVARIANT: `ptr` by the contract of this function, and `listener` was read from it.
        Self {
            ptr,
            listener,
            _request: PhantomData,
        }
    }

    /// Returns the kernel's pointer.
    pub(crate) fn as_ptr(&self) -> *mut bindings::request_sock {
        self.ptr.as_ptr()
    }

    /// Returns the kernel's pointer, which is never NULL.
    pub(crate) fn as_non_null(&self) -> NonNull<bindings::request_sock> {
        self.ptr
    }

    /// Returns `tcp_rsk(req)`.
    pub(super) fn tcp(&self) -> *mut bindings::tcp_request_sock {
        // A `struct request_sock` is the first member of `inet_request_sock`, which is the first
        // one of `tcp_request_sock`.
        self.as_ptr().cast()
    }

    /// Returns `inet_rsk(req)`.
    fn inet(&self) -> *mut bindings::inet_request_sock {
        self.as_ptr().cast()
    }

    /// Returns the family of its packets: `AF_INET` also for a v4-mapped client.
    pub(crate) fn family(&self) -> i32 {
        // SAFETY: The operations of a request are valid and constant, also those of the override.
        unsafe { (*self.ops()).family }
    }

    /// Returns `req->rsk_ops`.
    pub(crate) fn ops(&self) -> *const bindings::request_sock_ops {
        // SAFETY: The request is alive by the type invariants. The read is a `READ_ONCE()`, as
        // another CPU may override or restore the operations.
        unsafe { ptr::read_volatile(&raw const (*self.as_ptr()).rsk_ops) }
    }

    /// Returns `tcp_rsk(req)->af_specific`.
    pub(crate) fn tcp_ops(&self) -> *const bindings::tcp_request_sock_ops {
        // SAFETY: The request is alive by the type invariants. The read is a `READ_ONCE()`, as
        // another CPU may override or restore the operations.
        unsafe { ptr::read_volatile(&raw const (*self.tcp()).af_specific) }
    }

    /// Wraps the kernel's pointer. Returns `None` if it is NULL, or a request without a listener:
    /// one that was made from a cookie.
    ///
    /// # Safety
    ///
    /// `req` must be NULL, or point to a `struct tcp_request_sock` that is alive for `'a`.
    pub(crate) unsafe fn with_listener(req: *const bindings::request_sock) -> Option<Self> {
        let req = NonNull::new(req.cast_mut())?;
        // SAFETY: The request is alive by the contract of this function.
        let has_listener = !unsafe { listener_sock(req.as_ptr()) }.is_null();
        // SAFETY: The request is alive for `'a` by the contract of this function, and has a
        // listener if the wrapper is made.
        has_listener.then(|| unsafe { Self::from_raw(req) })
    }

    /// Returns the listener that the request was made for.
    pub(crate) fn listen_sock(&self) -> ListenSock<'a> {
        // SAFETY: The request has a listener by the type invariants, and holds a reference to it
        // for as long as it lives, which is `'a` or longer.
        unsafe { ListenSock::from_raw(NonNull::new_unchecked(self.listener)) }
    }

    /// Returns IRS, the client's initial sequence number.
    pub(crate) fn client_isn(&self) -> u32 {
        // SAFETY: Alive by the type invariants. The field does not change once the request can be
        // found.
        unsafe { client_isn(self.as_ptr()) }
    }

    /// Returns whether both ends agreed on timestamps.
    pub(crate) fn uses_timestamps(&self) -> bool {
        // SAFETY: Alive by the type invariants. The field does not change once the request can be
        // found.
        unsafe { (*self.inet()).tstamp_ok() != 0 }
    }

    /// Returns whether data, or a cookie, was accepted with the SYN.
    pub(crate) fn is_fast_open(&self) -> bool {
        // SAFETY: Alive by the type invariants. The field does not change once the request can be
        // found.
        unsafe { (*self.tcp()).tfo_listener }
    }

    /// Returns whether it belongs to an MPTCP connection.
    pub(crate) fn is_mptcp(&self) -> bool {
        // SAFETY: Alive by the type invariants. The field does not change once the request can be
        // found.
        unsafe { (*self.tcp()).is_mptcp }
    }

    /// Returns whether it is still in the table of connections. Once it is out, it never returns.
    pub(crate) fn is_hashed(&self) -> bool {
        // SAFETY: Alive by the type invariants.
        unsafe { bindings::accf_req_is_hashed(self.as_ptr()) }
    }

    /// Returns whether it is marked as acked: a CPU has begun to park it, or the kernel has dropped
    /// an ACK of its client, because the accept queue was full, or because of `TCP_DEFER_ACCEPT`
    /// before the module took that over.
    ///
    /// There is a full barrier between what the caller did before and the read.
    pub(crate) fn was_acked(&self) -> bool {
        // SAFETY: Alive by the type invariants. Another CPU may be setting this one bit, and either
        // value is valid.
        unsafe { bindings::accf_req_was_acked(self.as_ptr()) }
    }

    /// Marks it as acked, as the kernel does when `syn_recv_sock` makes no connection, and then
    /// checks, after a full barrier, whether it may be parked. Fails if it is not in the table of
    /// connections any more, or if its listener has stopped or checks signatures. A listener that
    /// passes the check has listened since its `write_seq` was read ([`ListenSock::write_seq`]), or
    /// listens again.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock of the request's parking listener, and drop it only once the
    /// request is parked, or will not be. A CPU that makes a connection of the request and finds it
    /// acked ([`Self::was_acked`]) waits for that lock, and takes what it finds then as final.
    pub(crate) unsafe fn set_acked(&self) -> Result<(), Bypass> {
        // SAFETY: Alive by the type invariants, and so is its listener. The lock is held by the
        // contract of this function. Another CPU that writes this bit sets it too. The kernel
        // writes another bit of the same byte only for listeners with a key, and may write this bit
        // back as it was before; therefore the call then checks whether the listener has one.
        let found = unsafe { bindings::accf_req_set_acked(self.listener, self.as_ptr()) };
        match found {
            0 => Ok(()),
            bindings::ACCF_IS_SIGNED => Err(Bypass::Signed),
            _ => Err(Bypass::Other),
        }
    }

    /// Takes the mark back, so that the clone that TCP makes of it for another listener may be
    /// parked there: TCP sends that client a SYN-ACK, and another bare ACK comes.
    ///
    /// # Safety
    ///
    /// The request must have got TCP's operations back from its parking listener, which was closed.
    /// So no CPU parks it again, and one that makes a connection of it finds nothing to do for the
    /// module, acked or not. (A CPU that processes a bare ACK of it may set the mark again. Then
    /// the clone is not parked.)
    pub(crate) unsafe fn clear_acked(&self) {
        // SAFETY: Alive by the type invariants. The kernel writes another bit of the same byte only
        // for listeners with a key, which park nothing.
        unsafe { bindings::accf_req_clear_acked(self.as_ptr()) };
    }

    /// Returns how often its SYN-ACK timer has fired. While that is 0, the kernel counts the
    /// request as young.
    pub(crate) fn timeouts(&self) -> u8 {
        // SAFETY: Alive by the type invariants. Only the handler of its SYN-ACK timer writes the
        // field.
        unsafe { (*self.as_ptr()).num_timeout() }
    }

    /// Returns what the handler of its SYN-ACK timer counts by.
    fn synack_timer(&self) -> bindings::accf_synack_timer {
        // SAFETY: Alive by the type invariants, and so is its listener.
        unsafe { bindings::accf_req_synack_timer(self.as_ptr()) }
    }

    /// Returns whether its SYN-ACK timer may stay armed while it is parked
    /// (`policy::may_synack_timer_run()`).
    pub(crate) fn may_synack_timer_run(&self) -> bool {
        let synack = self.synack_timer();
        // It is never negative, and no timer is set to more than `DEFERRED_JIFFIES`.
        let left = Nanos(u64::from(synack.left as u32).saturating_mul(NANOS_PER_JIFFY));
        policy::may_synack_timer_run(synack.timeouts, synack.max_timeouts, left)
    }

    /// Returns whether the kernel would move it to another listener of the group now, if its own
    /// had stopped.
    pub(crate) fn can_migrate(&self) -> bool {
        // SAFETY: Alive by the type invariants, and so are its listener and its network namespace.
        unsafe { bindings::accf_req_can_migrate(self.as_ptr()) }
    }

    /// Returns whether the table of connections contains a connection that was made of it.
    pub(crate) fn is_connected(&self) -> bool {
        // SAFETY: Alive by the type invariants, and so are its listener and its network namespace.
        unsafe { bindings::accf_req_is_connected(self.as_ptr()) }
    }

    /// Returns whether the table of connections contains another socket with its addresses: a
    /// connection that was made of it, a clone, or a new request of the same client.
    pub(crate) fn has_successor(&self) -> bool {
        // SAFETY: Alive by the type invariants, and so are its listener and its network namespace.
        unsafe { bindings::accf_req_has_successor(self.as_ptr()) }
    }

    /// Takes it out of the table of connections and stops its SYN-ACK timer, unless that has been
    /// done before (`inet_csk_reqsk_queue_drop()`). Nothing is sent.
    ///
    /// Waits for the timer's handler, so the caller must not hold a lock that is taken there.
    pub(crate) fn drop_from_table(&self) {
        // SAFETY: Alive by the type invariants. `tcp_abort()` accepts a request, and only drops it.
        unsafe { bindings::tcp_abort(self.as_ptr().cast(), ECONNABORTED.to_errno()) };
    }

    /// Returns whether its SYN-ACK was sent more than once.
    pub(crate) fn has_repeated_syn_ack(&self) -> bool {
        // SAFETY: Alive by the type invariants. The read is a `READ_ONCE()`.
        unsafe { ptr::read_volatile(&raw const (*self.as_ptr()).num_retrans) != 0 }
    }

    /// Returns the timestamp of its first SYN-ACK.
    pub(crate) fn first_tsval_sent(&self) -> u32 {
        // SAFETY: Alive by the type invariants. The field does not change once the request can be
        // found.
        unsafe { (*self.tcp()).snt_tsval_first }
    }

    /// Returns the round-trip time that the kernel would take if a segment with these timestamps
    /// completed the handshake `now`: the time since the SYN-ACK (`tcp_synack_rtt_meas()`) or, if
    /// the SYN-ACK was sent again, by the echoed timestamp (`tcp_ack_update_rtt()`).
    pub(crate) fn round_trip(
        &self,
        now: Nanos,
        timestamps: Option<Timestamps>,
    ) -> Option<RoundTrip> {
        if !self.has_repeated_syn_ack() {
            return Some(RoundTrip::SinceSynAck);
        }
        match timestamps {
            Some(Timestamps { echo, .. }) if echo != 0 => {
                // SAFETY: Alive by the type invariants.
                let rtt_us =
                    unsafe { bindings::accf_echoed_rtt_us(self.as_ptr(), now.micros(), echo) };
                Some(RoundTrip::Micros(rtt_us))
            }
            _ => None,
        }
    }

    /// Makes `tcp_synack_rtt_meas()` take `round_trip`, which was determined when the handshake was
    /// completed, `waited` before `now`.
    ///
    /// # Safety
    ///
    /// The caller must have taken the request out of the table of connections (`own_req`), and its
    /// connection must exist. Then no other code uses the fields written here, except for
    /// `tcp_synack_rtt_meas()` on a CPU that came second and whose connection is discarded.
    pub(crate) unsafe fn set_round_trip(&self, round_trip: RoundTrip, waited: Nanos, now: Nanos) {
        // SAFETY: Alive by the type invariants. No other CPU writes these fields, by the contract
        // of this function.
        unsafe {
            match round_trip {
                RoundTrip::SinceSynAck => {
                    let sent = &raw mut (*self.tcp()).snt_synack;
                    // 0 means that the time is not known.
                    if *sent != 0 {
                        *sent += waited.micros();
                    }
                    // The timer's handler may have sent another SYN-ACK while the request was being
                    // parked.
                    (*self.as_ptr()).num_retrans = 0;
                }
                RoundTrip::Micros(rtt_us) => {
                    bindings::accf_set_synack_rtt_us(self.as_ptr(), rtt_us, now.micros());
                }
            }
        }
    }

    /// Makes `child` what it is on a plain listener, where the bare ACK makes it, and not a later
    /// segment: `ack` is what IP said of the ACK, `ace` its AE, CWR and ECE, and `segment` is the
    /// later one.
    ///
    /// # Safety
    ///
    /// `child` must be a new child of this request, locked by the caller in softirq.
    pub(crate) unsafe fn set_child_ack(
        &self,
        child: NonNull<bindings::sock>,
        segment: &TcpSegment<'_>,
        ack: accf_arrival,
        ace: u8,
    ) {
        let (child, req) = (child.as_ptr(), self.as_ptr());
        // SAFETY: The request is alive by the type invariants, and so is the segment, of which the
        // function may make a clone, as TCP does. The child is locked by the contract of this
        // function.
        unsafe { bindings::accf_child_set_ack(child, req, segment.as_ptr().cast_mut(), ack, ace) };
    }

    /// Takes the time that the request was parked off what `child` counts as recovery, if its
    /// SYN-ACK timer has fired.
    ///
    /// # Safety
    ///
    /// `child` must be a new child of this request, locked by the caller in softirq.
    pub(crate) unsafe fn set_child_waited(&self, child: NonNull<bindings::sock>, waited: Nanos) {
        if self.timeouts() != 0 {
            let waited_ms = u32::try_from(waited.micros() / 1000).unwrap_or(u32::MAX);
            // SAFETY: The child is locked by the contract of this function.
            unsafe { bindings::accf_child_set_waited(child.as_ptr(), waited_ms) };
        }
    }

    /// Takes a reference, unless the request is dying.
    pub(crate) fn get(&self) -> Option<RequestRef> {
        // SAFETY: Alive by the type invariants.
        let taken = unsafe { bindings::accf_req_get(self.as_ptr()) };
        // Not `then_some()`, which would make and drop a `RequestRef` if no reference was taken.
        // INVARIANT: Owns the reference just taken. `self` has a listener.
        taken.then(|| RequestRef(self.ptr))
    }

    /// Returns whether its SYN-ACK timer is waiting to fire. It is not while its handler runs.
    pub(crate) fn timer_is_pending(&self) -> bool {
        // SAFETY: Alive by the type invariants. The timer was set up before the request could be
        // found.
        unsafe { bindings::accf_timer_pending(&raw const (*self.as_ptr()).rsk_timer) }
    }

    /// Moves its SYN-ACK timer to `jiffies` from now if the timer is pending, and returns whether
    /// it was. It is not if its handler is running, or if the request is dying.
    fn modify_pending_timer(&self, jiffies: usize) -> bool {
        // SAFETY: Alive by the type invariants. The timer was set up before the request could be
        // found; the call takes the timer's own lock.
        unsafe {
            bindings::mod_timer_pending(
                &raw mut (*self.as_ptr()).rsk_timer,
                bindings::accf_jiffies().wrapping_add(jiffies),
            ) != 0
        }
    }

    /// Defers its SYN-ACK timer, so that the timer does no harm while the request is parked: for
    /// `time`, when the listener hears of it (`send_synack()`), or for weeks; also for weeks if the
    /// timer's handler would drop the request (`policy::timeouts_while_probed()`). Returns whether
    /// the timer was pending; otherwise nothing has changed.
    ///
    /// The timer is not deleted: the kernel, when it drops the request, puts the timer's reference
    /// only if it deletes a pending timer.
    ///
    /// The lock of the parking listener is held.
    pub(crate) fn defer_timer(&self, time: Option<Nanos>) -> bool {
        let Some(time) = time else {
            return self.modify_pending_timer(DEFERRED_JIFFIES);
        };
        let synack = self.synack_timer();
        let Some(kept) = policy::timeouts_while_probed(synack.timeouts, synack.max_timeouts) else {
            return self.modify_pending_timer(DEFERRED_JIFFIES);
        };
        let was_pending = self.modify_pending_timer(jiffies(time).min(DEFERRED_JIFFIES));
        if was_pending && kept != synack.timeouts {
            // SAFETY: Alive by the type invariants. Only the timer's handler writes the field, but
            // for this lock's holders; the timer was pending just now, and does not fire for at
            // least a clock tick. The field shares its byte with `syncookie`, which does not change
            // any more.
            unsafe { (*self.as_ptr()).set_num_timeout(kept) };
        }
        was_pending
    }

    /// Makes its SYN-ACK timer fire `jiffies` from now: the kernel then decides what becomes of the
    /// request.
    pub(crate) fn expire_timer_in(&self, jiffies: usize) {
        // If the timer is not pending, it has fired already, or the request is dying.
        self.modify_pending_timer(jiffies);
    }

    /// Resets the count of timeouts, so that the handler of the SYN-ACK timer never finds too many,
    /// and makes the handler set the timer as late as it ever does.
    ///
    /// Only for `send_synack` when that handler calls it (`reqsk_timer_handler()`). Afterwards the
    /// handler counts this timeout and, if it is the first one, takes the request off the count of
    /// young requests. Therefore the request is put back on that count here.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock of the request's parking listener, and must be called by the
    /// handler of the request's SYN-ACK timer.
    pub(crate) unsafe fn reset_timeouts(&self) {
        // SAFETY: Returns a constant.
        let latest = unsafe { bindings::accf_rto_max() };
        // SAFETY: By the contract of this function.
        unsafe { self.count_timeouts_from(0, latest) };
    }

    /// Makes the handler of the SYN-ACK timer set the timer to `next` from now, or to the largest
    /// RTO if that is sooner, and not count this timeout if there was none before. Returns whether
    /// it is not counted.
    ///
    /// The count has 7 bits, and wraps. Between this and the handler's next step, another CPU finds
    /// 127 timeouts: a connection that it makes then shows that number, and for a segment with a
    /// timestamp `tcp_reqsk_timeout()` shifts by it, which UBSAN reports (once, where it is on).
    /// So this is the last thing to be done before the handler goes on.
    ///
    /// Only for `send_synack`, as [`Self::reset_timeouts`].
    ///
    /// # Safety
    ///
    /// As for [`Self::reset_timeouts`].
    pub(crate) unsafe fn wait_again(&self, next: Nanos) -> bool {
        const BEFORE_ZERO: u8 = 127;
        // SAFETY: Returns a constant.
        let latest = unsafe { bindings::accf_rto_max() };
        let next = u32::try_from(jiffies(next)).unwrap_or(latest).min(latest);
        let is_first = self.timeouts() == 0;
        // SAFETY: By the contract of this function.
        unsafe {
            if is_first {
                (*self.as_ptr()).set_num_timeout(BEFORE_ZERO);
                ptr::write_volatile(&raw mut (*self.as_ptr()).timeout, next.max(1));
            } else {
                self.count_timeouts_from(0, next.div_ceil(2));
            }
        }
        is_first
    }

    /// Sets the count of timeouts, and the first timeout, which the handler of the SYN-ACK timer
    /// doubles for each that it counts, and caps at the largest RTO. Puts the request back on the
    /// count of young requests if the handler takes it off again.
    ///
    /// # Safety
    ///
    /// As for [`Self::reset_timeouts`].
    unsafe fn count_timeouts_from(&self, count: u8, first: u32) {
        let req = self.as_ptr();
        // SAFETY: Alive by the type invariants, and so is the listener. Only the timer's handler
        // writes `num_timeout`, and the handler is our caller. The field shares its byte with
        // `syncookie`, which does not change any more.
        unsafe {
            if (*req).num_timeout() != count {
                (*req).set_num_timeout(count);
                self.listen_sock().add_young(1);
            }
            ptr::write_volatile(&raw mut (*req).timeout, first);
        }
    }

    /// Records that a segment with the timestamp of this moment was sent: the client may echo it.
    pub(crate) fn note_tsval_sent(&self) {
        // SAFETY: Alive by the type invariants. The write is a `WRITE_ONCE()`, and other CPUs, too,
        // write the timestamp of their moment.
        unsafe { bindings::accf_req_note_tsval_sent(self.as_ptr()) };
    }

    /// Returns where its client comes from. O(1).
    pub(crate) fn source(&self) -> Source {
        // SAFETY: Alive by the type invariants. The addresses do not change once the request can be
        // found.
        Source(unsafe { bindings::accf_req_source(self.as_ptr()) })
    }

    /// Returns both ends, as they stand on the wire.
    pub(crate) fn endpoints(&self) -> bindings::accf_endpoints {
        let mut ends = bindings::accf_endpoints::default();
        // SAFETY: Alive by the type invariants. The addresses do not change once the request can be
        // found.
        unsafe { bindings::accf_req_endpoints(self.as_ptr(), &mut ends) };
        ends
    }

    /// Returns the client's bare ACK, of which `kept` was kept.
    pub(crate) fn bare_ack(&self, kept: &KeptAck) -> BareAck {
        let tcp = self.tcp();
        // SAFETY: Alive by the type invariants. The sequence numbers do not change.
        // `snt_tsval_last` does, and the read of it is a `READ_ONCE()`.
        let (seq, ack, last_tsval) = unsafe {
            (
                (*tcp).rcv_isn.wrapping_add(1),
                (*tcp).snt_isn.wrapping_add(1),
                ptr::read_volatile(&raw const (*tcp).snt_tsval_last),
            )
        };
        let echo = if kept.echoes_first {
            self.first_tsval_sent()
        } else {
            last_tsval
        };
        BareAck {
            seq,
            ack,
            window: kept.window,
            timestamps: kept.tsval.map(|value| Timestamps { value, echo }),
            has_dsack: kept.has_dsack,
            arrival: kept.arrival,
            ace: kept.ace,
        }
    }
}

/// A reference to a request.
///
/// # Invariants
///
/// Owns one of the references of a request that has a listener.
pub(crate) struct RequestRef(NonNull<bindings::request_sock>);

impl RequestRef {
    /// Looks up the request that a segment belongs to, or returns `None` if it has left the table.
    ///
    /// A destructor of a request may run: no lock of a listener may be held.
    ///
    /// # Safety
    ///
    /// `sk` must be a listener in memory, and `skb` a segment that TCP has brought to it, with
    /// TCP's control block.
    pub(crate) unsafe fn of_segment(
        sk: *const bindings::sock,
        skb: *mut bindings::sk_buff,
        _rcu: &impl ReadSide,
    ) -> Option<Self> {
        // SAFETY: The listener and the segment are as the function wants them, by the contract of
        // this one; `_rcu` proves that the caller is an RCU reader.
        let request = unsafe { bindings::accf_req_of_skb(sk, skb) };
        // INVARIANT: The look-up has taken a reference, which is this value's now. Every request in
        // the table has a listener.
        NonNull::new(request).map(Self)
    }

    /// Takes over a reference that [`Self::into_raw`] has given up.
    ///
    /// # Safety
    ///
    /// `request` must have come from [`Self::into_raw`], and be passed to this function once.
    pub(crate) unsafe fn from_raw(request: NonNull<bindings::request_sock>) -> Self {
        // INVARIANT: The value that was given up met them, and its reference is this value's now.
        Self(request)
    }

    /// Gives up the reference without putting it.
    pub(crate) fn into_raw(self) -> NonNull<bindings::request_sock> {
        let request = self.0;
        core::mem::forget(self);
        request
    }

    /// Returns the request.
    pub(crate) fn as_request(&self) -> RequestSock<'_> {
        // SAFETY: Alive by the reference, and has a listener by the type invariants.
        unsafe { RequestSock::from_raw(self.0) }
    }
}

impl Drop for RequestRef {
    fn drop(&mut self) {
        // SAFETY: Gives up the reference that is owned by the type invariants. `sock_gen_put()`
        // replaces `reqsk_put()`, which needs a function that is not exported; for a request both
        // do the same.
        unsafe { bindings::sock_gen_put(self.0.as_ptr().cast()) };
    }
}
