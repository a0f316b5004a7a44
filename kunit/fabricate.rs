// SPDX-License-Identifier: GPL-2.0-only

//! Safe handles on what `fabricate.c` makes up, and on the functions of `net/` that only the kernel calls.

use core::{
    ffi::CStr,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    }, //
};

use crate::{
    net::{
        bh::BhGuard,
        bindings,
        callbacks::af_ops,
        listener::Listener,
        registration::Registration,
        reqsk::RequestSock,
        sockopt::Defaults,
        tcp_segment::{
            self,
            TcpSegment, //
        }, //
    },
    policy::{
        Config,
        Filter,
        OnTimeout,
        Phase,
        Stats,
        Timeout,
        Verdict, //
    }, //
};

/// A filter like `dataready`, under a name that the module proper leaves free.
pub(crate) struct TestFilter;

impl Filter for TestFilter {
    const NAME: &'static str = "accf_kunit";

    fn verdict(segment: crate::policy::SegmentKind) -> Verdict {
        crate::policy::Dataready::verdict(segment)
    }
}

/// What the suites ask of listeners, but for a timeout.
pub(crate) const DEFAULTS: Defaults = Defaults {
    config: Config {
        timeout: Timeout::Never,
        max_parked: 1000,
        on_timeout: OnTimeout::Accept,
    },
    namespace_limit: 0,
};

/// Registers [`TestFilter`].
pub(crate) fn register(timeout: Timeout) -> Result<Pin<KBox<Registration>>> {
    register_with(Defaults {
        config: Config {
            timeout,
            ..DEFAULTS.config
        },
        ..DEFAULTS
    })
}

/// Registers [`TestFilter`] with other defaults.
pub(crate) fn register_with(defaults: Defaults) -> Result<Pin<KBox<Registration>>> {
    KBox::pin_init(
        Registration::new::<TestFilter>(
            defaults,
            kernel::module::this_module::<crate::AccfKunit>(),
        ),
        GFP_KERNEL,
    )
}

/// How often the made-up originals were called.
pub(crate) static SYNACKS: Atomic<i32> = Atomic::new(0);
/// As above.
pub(crate) static DESTROYED: Atomic<i32> = Atomic::new(0);

/// # Safety
///
/// None: looks at nothing.
unsafe extern "C" fn count_synack(
    _sk: *const bindings::sock,
    _dst: *mut bindings::dst_entry,
    _fl: *mut bindings::flowi,
    _req: *mut bindings::request_sock,
    _foc: *mut bindings::tcp_fastopen_cookie,
    _type: bindings::tcp_synack_type,
    _skb: *mut bindings::sk_buff,
) -> core::ffi::c_int {
    SYNACKS.add(1, Relaxed);
    0
}

/// # Safety
///
/// None: looks at nothing.
unsafe extern "C" fn count_destroyed(_req: *mut bindings::request_sock) {
    DESTROYED.add(1, Relaxed);
}

/// The operations of made-up requests, as constant as the kernel's own.
struct Originals {
    ops: bindings::request_sock_ops,
    tcp: bindings::tcp_request_sock_ops,
}

// SAFETY: constant.
unsafe impl Sync for Originals {}

static ORIGINALS: Originals = Originals {
    ops: bindings::request_sock_ops {
        family: tcp_segment::AF_INET,
        destructor: Some(count_destroyed),
        // SAFETY: all zeroes are null pointers and no numbers.
        ..unsafe { core::mem::zeroed() }
    },
    tcp: bindings::tcp_request_sock_ops {
        send_synack: Some(count_synack),
        // SAFETY: as above.
        ..unsafe { core::mem::zeroed() }
    },
};

/// A listening socket.
pub(crate) struct TestListener(NonNull<bindings::socket>);

impl TestListener {
    /// A listener with [`TestFilter`].
    pub(crate) fn filtered() -> Result<Self> {
        let listener = Self::plain()?;
        listener.attach(c"accf_kunit")?;
        Ok(listener)
    }

    /// A listener without a filter.
    pub(crate) fn plain() -> Result<Self> {
        // SAFETY: no requirements.
        let sock = unsafe { bindings::accf_kunit_listener(tcp_segment::AF_INET) };
        NonNull::new(sock).map(Self).ok_or(ENOMEM)
    }

    /// `setsockopt(TCP_ULP)`.
    pub(crate) fn attach(&self, name: &CStr) -> Result {
        // SAFETY: the socket is ours, and the name ends with a NUL.
        kernel::error::to_result(unsafe {
            bindings::accf_kunit_attach(self.0.as_ptr(), name.as_char_ptr())
        })
    }

    fn sk(&self) -> *mut bindings::sock {
        // SAFETY: the socket is ours.
        unsafe { bindings::accf_kunit_sk(self.0.as_ptr()) }
    }

    /// Does the listener use operations of ours?
    pub(crate) fn has_accf_af_ops(&self) -> bool {
        // SAFETY: the socket is ours, and nobody else changes it.
        let hook = unsafe {
            let csk = self.sk().cast::<bindings::inet_connection_sock>();
            (*(*csk).icsk_af_ops).syn_recv_sock
        };
        let ours: af_ops::SynRecvSock = af_ops::syn_recv_sock::<TestFilter>;
        hook.is_some_and(|hook| ptr::fn_addr_eq(hook, ours))
    }

    /// Has the kernel give it the operations of a plain socket, as where it connects to an IPv4-mapped address.
    pub(crate) fn lose_af_ops(&self, plain: &Self) {
        let csk = |sk: *mut bindings::sock| sk.cast::<bindings::inet_connection_sock>();
        // SAFETY: both sockets are ours.
        unsafe { (*csk(self.sk())).icsk_af_ops = (*csk(plain.sk())).icsk_af_ops };
    }

    /// How many requests count against its SYN backlog.
    pub(crate) fn half_open(&self) -> i32 {
        // SAFETY: the socket is ours.
        unsafe { bindings::accf_qlen(self.sk()) }
    }

    /// Its counters.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: the listener, if filtered, was filtered by `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(self.sk(), &bh) }.ok_or(ENOENT)?;
        Ok(listener.account(&bh).stats)
    }

    /// Its terms.
    pub(crate) fn config(&self) -> Result<Config> {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: as in `stats()`.
        let listener = unsafe { Listener::of(self.sk(), &bh) }.ok_or(ENOENT)?;
        Ok(listener.account(&bh).config)
    }

    /// `setsockopt(SOL_ACCF, ACCF_CONFIG)`, without the way there.
    pub(crate) fn set_config(&self, config: Config) -> Result {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: as in `stats()`.
        let listener = unsafe { Listener::of(self.sk(), &bh) }.ok_or(ENOENT)?;
        listener.set_config(&bh, config);
        Ok(())
    }

    /// How many of its requests count as young.
    pub(crate) fn young(&self) -> i32 {
        // SAFETY: the socket is ours.
        unsafe { bindings::accf_young(self.sk()) }
    }
}

impl Drop for TestListener {
    fn drop(&mut self) {
        // SAFETY: the socket is ours.
        unsafe { bindings::accf_kunit_close(self.0.as_ptr()) };
    }
}

/// A made-up request of a listener.
pub(crate) struct TestRequest(NonNull<bindings::request_sock>);

impl TestRequest {
    /// A request whose SYN-ACK went out `age_us` microseconds ago.
    pub(crate) fn new(listener: &TestListener, age_us: u32) -> Result<Self> {
        // SAFETY: the listener is alive, and the operations are constant.
        let req = unsafe {
            bindings::accf_kunit_request(listener.sk(), &ORIGINALS.ops, &ORIGINALS.tcp, age_us)
        };
        NonNull::new(req).map(Self).ok_or(ENOMEM)
    }

    /// As `inet_reqsk_clone()` copies it.
    pub(crate) fn kernel_clone(&self) -> Result<Self> {
        // SAFETY: the request is ours.
        NonNull::new(unsafe { bindings::accf_kunit_clone(self.0.as_ptr()) })
            .map(Self)
            .ok_or(ENOMEM)
    }

    /// The request as `net/` sees it.
    pub(crate) fn request(&self) -> RequestSock<'_> {
        // SAFETY: alive as long as `self`, with a listener.
        unsafe { RequestSock::from_raw(self.0) }
    }

    /// Takes it out of the table.
    pub(crate) fn unhash(&self) {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_unhash(self.0.as_ptr()) }
    }

    /// Makes it look as if its last reference were just gone: its destructor is on its way.
    pub(crate) fn kill(&self) {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_kill(self.0.as_ptr()) }
    }

    /// How many references there are to it.
    pub(crate) fn references(&self) -> u32 {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_references(self.0.as_ptr()) }
    }

    /// Makes it look as if its timer's handler were running.
    pub(crate) fn stop_timer(&self) {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_stop_timer(self.0.as_ptr()) }
    }

    /// Has its timer fire in so many jiffies.
    pub(crate) fn set_timer(&self, jiffies: i64) {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_set_timer(self.0.as_ptr(), jiffies as usize) }
    }

    /// Makes it look as if it had timed out so many times.
    pub(crate) fn time_out(&self, timeouts: u8) {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_time_out(self.0.as_ptr(), timeouts) }
    }

    /// How often it has timed out.
    pub(crate) fn timeouts(&self) -> u8 {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_timeouts(self.0.as_ptr()) }
    }

    /// In how many jiffies its timer will fire; -1 if it will not.
    pub(crate) fn timer_in(&self) -> i64 {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_timer_in(self.0.as_ptr()) as i64 }
    }

    /// How long ago its SYN-ACK went out, in microseconds.
    pub(crate) fn synack_age_us(&self) -> u64 {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_synack_age_us(self.0.as_ptr()) }
    }

    /// Shows the listener the client's bare ACK, as `tcp_check_req()` does. `true`: swallowed.
    pub(crate) fn bare_ack(&self, window: u16) -> Result<bool> {
        let segment = TestSegment::new(self, 0, false, window)?;
        let _bh = BhGuard::new();
        let mut own_req = false;
        // SAFETY: what the kernel would pass. Only where the request can be parked is this called, so that the
        // kernel's own function, which would not believe in a made-up request, is not.
        let child = unsafe {
            af_ops::syn_recv_sock::<TestFilter>(
                self.request().listener_sock(),
                segment.0.as_ptr(),
                self.0.as_ptr(),
                ptr::null_mut(),
                self.0.as_ptr(),
                &mut own_req,
                None,
            )
        };
        Ok(child.is_null())
    }

    /// Tries to park it, as its listener's hook does.
    pub(crate) fn park(&self, window: u16) -> Result<bool> {
        let segment = TestSegment::new(self, 0, false, window)?;
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: the segment is as TCP would show it.
        let segment = unsafe { TcpSegment::from_raw(segment.0.as_ptr()) };
        let request = self.request();
        // SAFETY: its listener, if filtered, was filtered by `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(request.listener_sock(), &bh) }.ok_or(ENOENT)?;
        Ok(listener.park(&bh, request, segment))
    }

    /// Settles it, as its listener's hook does when data has made a connection of it.
    pub(crate) fn complete(&self) -> Result {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: as in `park()`.
        let listener = unsafe { Listener::of(request.listener_sock(), &bh) }.ok_or(ENOENT)?;
        // SAFETY: nobody else knows the request.
        unsafe { listener.complete(&bh, request, crate::policy::SegmentKind::Data) };
        Ok(())
    }

    /// Gives it back, as is done when the kernel makes a connection without asking.
    pub(crate) fn fall_back(&self) -> Result {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: as in `park()`.
        let listener = unsafe { Listener::of(request.listener_sock(), &bh) }.ok_or(ENOENT)?;
        listener.fall_back(&bh, &request);
        Ok(())
    }

    /// Where it stands.
    pub(crate) fn phase(&self) -> Option<Phase> {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: as in `park()`.
        unsafe { Listener::of(request.listener_sock(), &bh) }?.phase_of(&bh, &request)
    }

    /// The window of the last bare ACK it remembers.
    pub(crate) fn last_window(&self) -> Option<u16> {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: as in `park()`.
        let listener = unsafe { Listener::of(request.listener_sock(), &bh) }?;
        if !listener.has_parked(&request) {
            return None;
        }
        // SAFETY: it is parked, and no other CPU knows it.
        Some(unsafe { request.parked() }.window())
    }

    /// Are its operations the made-up originals?
    pub(crate) fn has_original_ops(&self) -> bool {
        let request = self.request();
        ptr::eq(request.ops(), &ORIGINALS.ops) && ptr::eq(request.tcp_ops(), &ORIGINALS.tcp)
    }

    /// Calls its `send_synack`, as `tcp_rtx_synack()` does.
    pub(crate) fn send_synack(&self) -> i32 {
        let _bh = BhGuard::new();
        // SAFETY: the operations of a request are valid.
        let Some(send) = (unsafe { (*self.request().tcp_ops()).send_synack }) else {
            return -1;
        };
        // SAFETY: what the kernel would pass; the made-up original looks at nothing.
        unsafe {
            send(
                self.request().listener_sock(),
                ptr::null_mut(),
                ptr::null_mut(),
                self.0.as_ptr(),
                ptr::null_mut(),
                bindings::tcp_synack_type_TCP_SYNACK_RETRANS,
                ptr::null_mut(),
            )
        }
    }

    /// Calls its `send_ack`, as `tcp_check_req()` does for what lies outside of the window.
    pub(crate) fn send_ack(&self) {
        let _bh = BhGuard::new();
        // SAFETY: the operations of a request are valid.
        if let Some(send) = unsafe { (*self.request().ops()).send_ack } {
            // SAFETY: what the kernel would pass, but for the segment, which nobody looks at.
            unsafe {
                send(
                    self.request().listener_sock(),
                    ptr::null_mut(),
                    self.0.as_ptr(),
                )
            };
        }
    }

    /// The latest timestamp that the client may echo.
    pub(crate) fn last_tsval(&self) -> u32 {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_last_tsval(self.0.as_ptr()) }
    }

    /// The timestamp of a segment that would be sent now.
    pub(crate) fn tsval_now(&self) -> u32 {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_tsval_now(self.0.as_ptr()) }
    }

    /// Calls its destructor, as `__reqsk_free()` does.
    pub(crate) fn destroy(&self) {
        // SAFETY: the operations of a request are valid.
        if let Some(destructor) = unsafe { (*self.request().ops()).destructor } {
            // SAFETY: nobody else knows the request.
            unsafe { destructor(self.0.as_ptr()) };
        }
    }
}

impl Drop for TestRequest {
    fn drop(&mut self) {
        // SAFETY: the request is ours.
        unsafe { bindings::accf_kunit_free(self.0.as_ptr()) };
    }
}

/// A made-up segment.
pub(crate) struct TestSegment(NonNull<bindings::sk_buff>);

impl TestSegment {
    /// The reply to the SYN-ACK of `request`, with `len` bytes of data.
    pub(crate) fn new(request: &TestRequest, len: u32, fin: bool, window: u16) -> Result<Self> {
        // SAFETY: the request is alive.
        let skb = unsafe { bindings::accf_kunit_segment(request.0.as_ptr(), len, fin, window) };
        NonNull::new(skb).map(Self).ok_or(ENOMEM)
    }

    /// What `net/` makes of it.
    pub(crate) fn kind(&self, request: &TestRequest) -> crate::policy::SegmentKind {
        // SAFETY: as TCP would show it.
        unsafe { TcpSegment::from_raw(self.0.as_ptr()) }.kind(request.request().client_isn())
    }
}

impl Drop for TestSegment {
    fn drop(&mut self) {
        // SAFETY: the segment is ours.
        unsafe { bindings::accf_kunit_free_segment(self.0.as_ptr()) };
    }
}
