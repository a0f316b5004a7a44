// SPDX-License-Identifier: GPL-2.0-only

//! The parked requests of a listener: the data that its lock guards. Takes no lock itself.

use kernel::{
    list::{
        List,
        ListArc, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        UniqueArc, //
    }, //
};

use crate::policy::{
    self,
    Bypass,
    Config,
    Expiry,
    Nanos,
    OnTimeout,
    Probing,
    RoomWatch,
    Stats, //
};

use super::{
    by_source::{
        insert_from_back,
        insert_from_front,
        BySource, //
    },
    parked_request::{
        ParkedFlags,
        ParkedRequest, //
    },
    reqsk_ops::RequestOpsOverride,
    sockopt::{
        SourceInfo,
        SOURCES, //
    }, //
};

/// How many requests one run of the listener's timer handles at most. The next run handles the
/// rest, so that other softirqs get their turn.
pub(crate) const BUDGET: usize = 64;

/// How many vacant [`ParkedRequest`] are kept at most: 4 KiB.
const SPARES: usize = 64;

/// Whether requests may be parked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not yet: CPUs may still make connections without calling the module.
    Attached,
    /// Yes.
    Active,
    /// Not any more.
    Closed,
}

/// The parked requests of a listener, in lists each of which is in the order of parking, and its
/// counters.
///
/// The queue owns the [`ParkedRequest`] of each request, and holds no reference to the request.
/// When TCP destroys a parked request, the destructor takes the entry out of the queue, under the
/// listener's lock. So a request in the queue is in memory while the lock is held, though it may be
/// dying.
///
/// # Invariants
///
/// * Each entry is in the list that its flags name: one that is counted, in the list of its source.
/// * No entry that is counted is expired.
/// * An entry that has left the queue is not counted.
/// * The entries that are not counted were parked after those that are, except for those that are
///   or were expired.
/// * Each entry in `dead` is expired. Those that no CPU acts on yet come first.
/// * `deferred` and `armed` are in the order of parking, each of its own. But for those that are or
///   were expired, all entries in `deferred` were parked before those in `armed`.
/// * If there is an entry, the value is behind the lock of the listener where the request of each
///   entry is parked, so that code that has a reference to the value holds that lock.
pub(crate) struct ParkQueue {
    /// Requests that are counted by source. Their SYN-ACK timers are deferred.
    by_source: BySource,
    /// Requests whose SYN-ACK timers are deferred. They were parked before those in `armed`, but
    /// for those that are or were expired.
    deferred: List<ParkedRequest>,
    /// Requests whose SYN-ACK timers are still armed, as they do not fire soon, and requests that
    /// were parked after such a one.
    armed: List<ParkedRequest>,
    /// Requests whose clients have died, for the listener's timer. All are expired.
    dead: List<ParkedRequest>,
    /// How the clients are probed whose SYN-ACK timers are deferred from now on.
    pub(crate) probing: Option<Probing>,
    /// The counters.
    pub(crate) stats: Stats,
    /// The listener's configuration.
    pub(crate) config: Config,
    /// How many parked requests keep their place in the SYN backlog, at most.
    pub(crate) backlog_share: u32,
    /// How many parked requests are taken off the SYN backlog now.
    pub(crate) backlog_excluded: u64,
    /// How many parked requests are expired: some CPU is acting on each of them.
    expired: u64,
    /// When to look for room in the accept queue, while expired requests wait for it.
    pub(crate) room_watch: RoomWatch,
    /// When the listener's timer fires, if it is set.
    pub(crate) timer_at: Option<Nanos>,
    /// The override of the last request parked, which usually suits the next one, too.
    pub(crate) ops_override: Option<&'static RequestOpsOverride>,
    /// Whether requests may be parked.
    state: State,
    /// Entries of requests that are no longer parked, for requests to come.
    spares: KVec<Pin<UniqueArc<ParkedRequest>>>,
}

impl ParkQueue {
    /// Makes an empty queue, where nothing is parked before [`Self::activate`], for the lock of a
    /// listener. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: there is no memory.
    pub(crate) fn new(config: Config) -> Result<Self> {
        // INVARIANT: There is no entry.
        Ok(Self {
            by_source: BySource::new()?,
            deferred: List::new(),
            armed: List::new(),
            dead: List::new(),
            probing: None,
            stats: Stats::default(),
            config,
            backlog_share: 0,
            backlog_excluded: 0,
            expired: 0,
            room_watch: RoomWatch::default(),
            timer_at: None,
            ops_override: None,
            state: State::Attached,
            spares: KVec::with_capacity(SPARES, GFP_KERNEL)?,
        })
    }

    /// Allows parking, and returns `true`, unless the listener was closed or is active already.
    ///
    /// # Safety
    ///
    /// Every CPU that makes a connection at the listener must call the module for it, now and until
    /// the queue is closed.
    pub(crate) unsafe fn activate(&mut self) -> bool {
        let is_attached = self.state == State::Attached;
        if is_attached {
            self.state = State::Active;
        }
        is_attached
    }

    /// Returns whether requests may be parked.
    pub(crate) fn is_active(&self) -> bool {
        self.state == State::Active
    }

    /// Forbids parking for good.
    pub(crate) fn close(&mut self) {
        self.state = State::Closed;
    }

    /// Returns whether the listener was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Returns how many requests are parked and not expired.
    pub(crate) fn unexpired(&self) -> u64 {
        self.stats.parked - self.expired
    }

    /// Returns whether a SYN-ACK timer may still be armed.
    pub(crate) fn has_armed(&self) -> bool {
        !self.armed.is_empty()
    }

    /// Returns the request that was parked first of those that are not expired.
    ///
    /// O(number of CPUs): at most one request for each CPU is expired (on PREEMPT_RT, for each
    /// task).
    pub(crate) fn oldest(&self) -> Option<ArcBorrow<'_, ParkedRequest>> {
        let uncounted = older(
            first_unexpired(&self.deferred),
            first_unexpired(&self.armed),
        );
        older(self.by_source.oldest(), uncounted)
    }

    /// Returns whether all requests are counted by source that are not expired. O(number of CPUs).
    fn are_all_counted(&self) -> bool {
        first_unexpired(&self.deferred).is_none() && first_unexpired(&self.armed).is_none()
    }

    /// Returns the request that is evicted next: the oldest one of the source that has the most, or
    /// the oldest one if not all are counted. (Of some, those that were parked first, an innocent
    /// source may have the most.)
    ///
    /// O(number of CPUs).
    pub(crate) fn victim(&self) -> Option<ArcBorrow<'_, ParkedRequest>> {
        if self.are_all_counted() {
            self.by_source.oldest_of_greediest()
        } else {
            self.oldest()
        }
    }

    /// Returns the sources that have the most requests, of those that are counted. O(1).
    pub(crate) fn greediest(&self) -> [Option<SourceInfo>; SOURCES] {
        // SAFETY: The lock is held by the type invariants, if there is an entry.
        unsafe { self.by_source.greediest() }
    }

    /// Counts requests by source, `most` at most, those that were parked first before others.
    /// Returns whether all are counted that are not expired.
    ///
    /// The SYN-ACK timers of these requests are deferred. O(`most` + number of CPUs).
    #[cold] // Most listeners are less than half full.
    pub(crate) fn count_sources(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let parked = if let Some(parked) = take_unexpired(&mut self.deferred) {
                parked
            } else if let Some(parked) = take_unexpired(&mut self.armed) {
                // SAFETY: The entry has just left `armed`, and goes into the list of its source
                // next. The lock is held by the type invariants, as there was an entry.
                unsafe { defer_timer(&parked, self.probing) };
                parked
            } else {
                return true;
            };
            // SAFETY: The entry was in the queue until now, and the lock is held by the type
            // invariants, as there was an entry.
            let source = unsafe { parked.request() }.source();
            // INVARIANT: The flag names the list that the entry goes into. The entry is not
            // expired, and was parked before all others that are not counted, but for those that
            // are or were expired.
            // SAFETY: The entry has just left its list, and goes into that of its source next. The
            // lock is held by the type invariants, as there was an entry.
            unsafe { parked.set_counted(true) };
            // SAFETY: The source was just read from the request.
            unsafe { self.by_source.insert(parked, source) };
        }
        self.are_all_counted()
    }

    /// Returns an entry for a request to come. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`Bypass::NoMemory`]: no spare is left, and there is no memory for another one.
    #[inline(always)] // Saves 9 instructions of a bare ACK (`cargo xtask bench holding`).
    pub(crate) fn take_spare(&mut self) -> Result<Pin<UniqueArc<ParkedRequest>>, Bypass> {
        match self.spares.pop() {
            Some(spare) => Ok(spare),
            None => ParkedRequest::new().map_err(|_| Bypass::NoMemory),
        }
    }

    /// Keeps the entry of a request that is no longer parked, unless another CPU still looks at it
    /// or enough are kept.
    pub(crate) fn recycle(&mut self, parked: Arc<ParkedRequest>) {
        let Some(spare) = Arc::into_unique_or_drop(parked) else {
            return;
        };
        if !self.is_closed() {
            // Without room for it, it is dropped.
            let _ = self.spares.push_within_capacity(spare);
        }
    }

    /// Appends the entry of a request that is parked at this listener.
    ///
    /// It must have been parked after all others, and its flags must say that its SYN-ACK timer is
    /// armed if [`Self::has_armed`]: the lists are in the order of parking.
    ///
    /// # Safety
    ///
    /// * The queue must be behind the lock of a listener, which the caller holds.
    /// * The request of `parked` must be parked at that listener, with `parked`: the caller has
    ///   just called [`override_ops()`](super::reqsk::RequestSock::override_ops) for it.
    #[inline(always)] // Saves 8 instructions of a bare ACK (`cargo xtask bench holding`).
    pub(crate) unsafe fn push_back(&mut self, parked: ListArc<ParkedRequest>) {
        // INVARIANT: The flags name the list. The rest is the contract of this function.
        if parked.flags().is_timer_armed() {
            self.armed.push_back(parked);
        } else {
            self.deferred.push_back(parked);
        }
    }

    /// Takes out an entry: those that are counted first, and each kind in the order of parking.
    pub(crate) fn pop_front(&mut self) -> Option<ListArc<ParkedRequest>> {
        let Some(parked) = self.by_source.pop() else {
            let parked = self.deferred.pop_front().or_else(|| self.armed.pop_front());
            return parked.or_else(|| self.dead.pop_front());
        };
        // SAFETY: The entry has just been taken out of its list, and is in none. The lock is held
        // by the type invariants, as there was an entry.
        unsafe { parked.set_counted(false) };
        Some(parked)
    }

    /// Takes an entry with these flags out. Returns `None` if it is not in the queue any more.
    ///
    /// # Safety
    ///
    /// `parked` must be in this queue or in no list, and `flags` must be what its flags are now.
    pub(crate) unsafe fn remove(
        &mut self,
        parked: &ParkedRequest,
        flags: ParkedFlags,
    ) -> Option<ListArc<ParkedRequest>> {
        if flags.is_counted() {
            // SAFETY: An entry that has left this queue is not counted, by the type invariants. So
            // it is in this queue, by the contract of this function.
            return unsafe { self.remove_counted(parked) };
        }
        let list = if flags.is_timer_armed() {
            &mut self.armed
        } else if flags.is_dead() {
            &mut self.dead
        } else {
            &mut self.deferred
        };
        // SAFETY: The entry is in this queue or in no list, by the contract of this function. If it
        // is in this queue, it is in the list that its flags name, by the type invariants.
        unsafe { list.remove(parked) }
    }

    /// Takes an entry that is counted out, and counts it off.
    ///
    /// # Safety
    ///
    /// `parked` must be in this queue, and counted.
    #[cold] // Most listeners are less than half full.
    unsafe fn remove_counted(&mut self, parked: &ParkedRequest) -> Option<ListArc<ParkedRequest>> {
        // SAFETY: The entry is in the queue by the contract of this function, and the lock is held
        // by the type invariants.
        let source = unsafe { parked.request() }.source();
        // SAFETY: The entry is counted by the contract of this function; so it is in the list of
        // its source, by the type invariants. The source was just read from the request.
        let removed = unsafe { self.by_source.remove(parked, source) }?;
        // SAFETY: The entry has just been taken out of its list, and is in none. The lock is held
        // by the type invariants, as there was an entry.
        unsafe { removed.set_counted(false) };
        Some(removed)
    }

    /// Returns when the SYN-ACK timers of the first armed requests are to be deferred.
    pub(crate) fn deferral_at(&self) -> Option<Nanos> {
        self.armed
            .iter()
            .next()
            .map(|first| policy::synack_timer_deferral(first.parked_at()))
    }

    /// Defers the SYN-ACK timers of requests that have been parked for long enough: of [`BUDGET`]
    /// requests at most.
    pub(crate) fn defer_timers(&mut self, now: Nanos) {
        if self.deferral_at().is_none_or(|at| at > now) {
            return;
        }
        for _ in 0..BUDGET {
            let is_next = |first: ArcBorrow<'_, ParkedRequest>| {
                policy::is_deferred_with_batch(now, first.parked_at())
            };
            if !self.armed.iter().next().is_some_and(is_next) {
                return;
            }
            let Some(parked) = self.armed.pop_front() else {
                return;
            };
            // SAFETY: The entry has just left `armed`, and goes into `deferred` next. The lock is
            // held by the type invariants, as there was an entry.
            unsafe { defer_timer(&parked, self.probing) };
            // Only requests that are or were expired come before it that were parked later.
            insert_from_back(&mut self.deferred, parked);
        }
    }

    /// Marks a parked request as expired, or as not expired. One that expires is counted off. One
    /// whose client has died stays expired for that: two CPUs may have begun to accept it, and the
    /// timer may have found it dead after the first one had given up.
    ///
    /// # Safety
    ///
    /// `parked` must be in this queue.
    pub(crate) unsafe fn set_expired(
        &mut self,
        parked: &ParkedRequest,
        expired: Option<(Expiry, OnTimeout)>,
    ) {
        if parked.flags().is_dead() {
            return;
        }
        self.expired -= u64::from(parked.flags().expired().is_some());
        self.expired += u64::from(expired.is_some());
        if parked.flags().is_counted() {
            // SAFETY: The entry is in this queue by the contract of this function, and counted.
            if let Some(parked) = unsafe { self.remove_counted(parked) } {
                // INVARIANT: The flags name `deferred` now, and the entry becomes expired. It was
                // parked before those that are not counted, but for those that are or were expired:
                // those few are passed.
                insert_from_front(&mut self.deferred, parked);
            }
        }
        // SAFETY: The entry is in this queue by the contract of this function, and not in the list
        // of the dead, as seen above. The lock is held by the type invariants.
        unsafe { parked.set_expired(expired) };
    }

    /// Marks a parked request, which is not expired, as one whose client has died.
    ///
    /// # Safety
    ///
    /// `parked` must be in this queue, not be expired, and its SYN-ACK timer be deferred.
    #[cold] // Few clients die.
    pub(crate) unsafe fn bury(&mut self, parked: &ParkedRequest) {
        // SAFETY: The entry is in this queue by the contract of this function, and these are its
        // flags.
        if let Some(parked) = unsafe { self.remove(parked, parked.flags()) } {
            self.expired += 1;
            // INVARIANT: The flag names `dead`, and the entry becomes expired.
            // SAFETY: The entry has just left its list, and goes into `dead` next. The lock is held
            // by the type invariants, as there was an entry.
            unsafe { parked.set_dead() };
            self.dead.push_front(parked);
        }
    }

    /// Returns a request whose client has died, and on which no CPU acts yet.
    pub(crate) fn next_dead(&self) -> Option<ArcBorrow<'_, ParkedRequest>> {
        self.dead
            .iter()
            .next()
            .filter(|parked| !parked.flags().is_taken_as_dead())
    }

    /// Notes that a CPU is about to drop a request whose client has died. O(1).
    ///
    /// # Safety
    ///
    /// `parked` must be in the list of those in this queue.
    pub(crate) unsafe fn take_dead(&mut self, parked: &ParkedRequest) {
        // SAFETY: The entry is in this list by the contract of this function.
        if let Some(parked) = unsafe { self.dead.remove(parked) } {
            // SAFETY: The lock is held by the type invariants, as there was an entry.
            unsafe { parked.set_taken_as_dead() };
            // INVARIANT: The flags name `dead` as before. A CPU acts on the entry, so it goes
            // behind those that no CPU acts on.
            self.dead.push_back(parked);
        }
    }

    /// Counts a request with these flags as no longer expired, as it leaves the queue.
    pub(crate) fn forget_expired(&mut self, flags: ParkedFlags) {
        if flags.expired().is_some() {
            self.expired -= 1;
        }
    }
}

/// Returns the first entry of a list that is not expired. O(number of CPUs), as
/// [`ParkQueue::oldest`].
fn first_unexpired(list: &List<ParkedRequest>) -> Option<ArcBorrow<'_, ParkedRequest>> {
    list.iter()
        .find(|parked| parked.flags().expired().is_none())
}

/// Returns the one of two entries that was parked first, either of which may be missing.
fn older<'a>(
    one: Option<ArcBorrow<'a, ParkedRequest>>,
    other: Option<ArcBorrow<'a, ParkedRequest>>,
) -> Option<ArcBorrow<'a, ParkedRequest>> {
    match (one, other) {
        (Some(one), Some(other)) if other.parked_at() < one.parked_at() => Some(other),
        (one, other) => one.or(other),
    }
}

/// Takes the first entry that is not expired out of a list. O(number of CPUs), as
/// [`ParkQueue::oldest`].
fn take_unexpired(list: &mut List<ParkedRequest>) -> Option<ListArc<ParkedRequest>> {
    let mut cursor = list.cursor_front();
    while let Some(next) = cursor.peek_next() {
        if next.flags().expired().is_none() {
            return Some(next.remove());
        }
        cursor.move_next();
    }
    None
}

/// Defers the SYN-ACK timer of a request whose entry was in the list of those with armed timers.
///
/// # Safety
///
/// `parked` must just have been taken out of that list. The caller must have held the lock of the
/// parking listener since, and put `parked` into another list before dropping the lock.
unsafe fn defer_timer(parked: &ListArc<ParkedRequest>, probing: Option<Probing>) {
    // SAFETY: The entry was in the queue until now, and the lock is held, by the contract of this
    // function.
    let request = unsafe { parked.request() };
    // If the timer is not pending, either its handler runs late: it will not send anything, and
    // sets the timer to as late as it ever does. Or the request is about to leave the queue.
    request.defer_timer(probing.map(|probing| probing.idle));
    // SAFETY: By the contract of this function.
    unsafe { parked.set_timer_deferred() };
}
