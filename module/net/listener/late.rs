// SPDX-License-Identifier: GPL-2.0-only

//! Connections beyond the backlog: the accept queue is full, and a parked client sends.
//!
//! TCP would refuse the connection and drop the request, which the client would send again after
//! its retransmission timeout. TCP compares the queue with `sk_max_ack_backlog` and asks no one, so
//! the module raises that number for the length of TCP's call.

use kernel::sync::atomic::ordering::Relaxed;

use crate::{
    net::{
        bh::BhDisabled,
        listen_sock::{
            ListenSock,
            RAISED, //
        },
        reqsk::RequestSock, //
    },
    policy::{
        AcceptQueue,
        Burst,
        Joining,
        Nanos, //
    }, //
};

use super::{
    timer::now,
    Listener,
    Locked, //
};

/// Returns the backlog of a socket as `listen()` has set it, or `None` while it is raised.
pub(super) fn backlog_unless_raised(sock: ListenSock<'_>) -> Option<u32> {
    Some(sock.backlog()).filter(|&backlog| backlog != RAISED)
}

/// The backlog of a listener, and by how much its accept queue exceeds it.
pub(super) struct LateState {
    burst: Burst,
    /// How many calls of TCP need the backlog raised now.
    calls: u32,
    /// While it is raised: the backlog that `listen()` has set.
    backlog: u32,
    /// How often the backlog was found lower than it was raised.
    interruptions: u32,
}

impl LateState {
    pub(super) fn new() -> Self {
        Self {
            burst: Burst::default(),
            calls: 0,
            backlog: 0,
            interruptions: 0,
        }
    }

    /// Returns the accept queue of `sock`, whose state this is, as `listen()` has set it up.
    fn accept_queue(&self, sock: ListenSock<'_>) -> AcceptQueue {
        AcceptQueue {
            queued: sock.queued(),
            backlog: backlog_unless_raised(sock).unwrap_or(self.backlog),
            somaxconn: sock.somaxconn(),
        }
    }

    /// Raises the backlog of `sock`, whose state this is, until [`Self::lower`]. Returns what that
    /// needs to know.
    fn raise(&mut self, sock: ListenSock<'_>) -> u32 {
        self.raise_again(sock);
        self.calls += 1;
        self.interruptions
    }

    /// Raises the backlog of `sock`, or takes note of what `listen()` has set since it was raised.
    fn raise_again(&mut self, sock: ListenSock<'_>) {
        let before = sock.swap_backlog(RAISED);
        if before != RAISED {
            self.backlog = before;
            self.interruptions = self.interruptions.wrapping_add(1);
        }
    }

    /// Ends what [`Self::raise`] has begun, which returned `interruptions`. Returns whether the
    /// backlog was raised all the time.
    fn lower(&mut self, sock: ListenSock<'_>, interruptions: u32) -> bool {
        self.raise_again(sock);
        self.calls -= 1;
        // If `listen()` is called just now, what it sets stays.
        if self.calls == 0 {
            sock.replace_backlog(RAISED, self.backlog);
        }
        self.interruptions == interruptions
    }
}

/// A listener whose backlog is raised; [`Self::lower`] is called in the end.
#[must_use = "the backlog stays raised until `lower()`"]
pub(crate) struct Raised<'a> {
    listener: &'a Listener,
    interruptions: u32,
    /// Whether the accept queue was full.
    was_full: bool,
}

impl Raised<'_> {
    /// Returns whether the accept queue was full.
    pub(crate) fn was_full(&self) -> bool {
        self.was_full
    }

    /// Lowers the backlog. `child` is what TCP has made; `is_late`: of the request of a parked
    /// client, beyond the backlog.
    ///
    /// Returns whether the backlog was raised all the time: if not, `listen()` was called, and TCP
    /// may have refused for that reason.
    pub(crate) fn lower(
        self,
        bh: &BhDisabled<'_>,
        child: Option<ListenSock<'_>>,
        is_late: bool,
    ) -> bool {
        let sock = self.listener.listen_sock();
        let mut queue = self.listener.queue.lock(bh);
        if is_late {
            let accept_queue = queue.late.accept_queue(sock);
            queue.late.burst.on_late(accept_queue, now());
            self.listener.has_burst.store(true, Relaxed);
        }
        let was_raised = queue.late.lower(sock, self.interruptions);
        if let Some(child) = child {
            // It is a copy of the listener.
            child.swap_backlog(queue.late.backlog);
        }
        was_raised
    }
}

impl Listener {
    /// Returns the accept queue, as `listen()` has set it up. `queue` must be this listener's.
    pub(super) fn accept_queue(&self, queue: &Locked) -> AcceptQueue {
        queue.late.accept_queue(self.listen_sock())
    }

    /// Raises the backlog for a call of TCP, if `joining` may become a connection although the
    /// accept queue is full.
    ///
    /// The lock is not held during that call. What other CPUs make of their segments meanwhile may
    /// exceed the backlog as well.
    #[cold] // Most accept queues are never full.
    pub(crate) fn raise_backlog(
        &self,
        bh: &BhDisabled<'_>,
        joining: Joining,
    ) -> Option<Raised<'_>> {
        let sock = self.listen_sock();
        // A flood of SYNs at a server that is slow does not keep others waiting for the lock.
        let is_new = !matches!(joining, Joining::Parked(_));
        if is_new && !self.has_burst.load(Relaxed) && !sock.is_backlog_raised() {
            return None;
        }
        let mut queue = self.queue.lock(bh);
        let now = now();
        if queue.late.burst.is_over(now) {
            self.has_burst.store(false, Relaxed);
        }
        let accept_queue = queue.late.accept_queue(sock);
        if queue.is_closed() || !queue.late.burst.has_room(joining, accept_queue, now) {
            return None;
        }
        // TCP limits half-open requests by the same number.
        let half_open = u32::try_from(sock.half_open()).unwrap_or(0);
        if joining == Joining::Syn && half_open > accept_queue.backlog {
            return None;
        }
        let interruptions = queue.late.raise(sock);
        Some(Raised {
            listener: self,
            interruptions,
            was_full: accept_queue.is_full(),
        })
    }

    /// Returns when `request` was parked here, if it is.
    #[cold] // Most accept queues are never full.
    pub(crate) fn parked_at(
        &self,
        bh: &BhDisabled<'_>,
        request: &RequestSock<'_>,
    ) -> Option<Nanos> {
        let _queue = self.queue.lock(bh);
        if !self.has_parked(request) {
            return None;
        }
        // SAFETY: The request is parked here, and the lock is held.
        Some(unsafe { request.parked() }.parked_at())
    }

    /// Counts a request that this listener had parked, and that was made a connection beyond the
    /// backlog.
    pub(crate) fn count_late(&self, bh: &BhDisabled<'_>) {
        self.queue.lock(bh).stats.released_late += 1;
    }

    /// Counts a segment of a request that is parked here, which is dropped as the accept queue is
    /// full.
    pub(crate) fn count_overflow(&self, bh: &BhDisabled<'_>) {
        self.queue.lock(bh).stats.overflow_dropped += 1;
    }
}
