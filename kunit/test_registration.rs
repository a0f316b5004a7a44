// SPDX-License-Identifier: GPL-2.0-only

//! The registration of filters, and their attachment to real sockets.

use kernel::prelude::*;

#[kunit_tests(accf_registration)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        fabricate::{
            register,
            TestListener,
            DEFAULTS, //
        },
        net,
        policy::{
            Dataready,
            Filter,
            SegmentKind,
            Timeout,
            Verdict, //
        }, //
    };

    struct LongName;

    impl Filter for LongName {
        const NAME: &'static str = "sixteen_bytes_it";

        fn verdict(segment: SegmentKind) -> Verdict {
            Dataready::verdict(segment)
        }
    }

    #[test]
    fn a_name_is_registered_once() -> Result {
        let first = register(Timeout::Never)?;
        assert!(register(Timeout::Never).is_err_and(|error| error == EEXIST));
        drop(first);
        register(Timeout::Never)?;
        Ok(())
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let registration = KBox::pin_init(
            net::callbacks::ulp::register::<LongName>(DEFAULTS),
            GFP_KERNEL,
        );
        assert!(registration.is_err_and(|error| error == ENAMETOOLONG));
    }

    #[test]
    fn a_listener_with_the_filter_has_the_ops_override() -> Result {
        let listener = TestListener::plain()?;
        assert!(listener
            .attach(c"accf_kunit")
            .is_err_and(|error| error == ENOENT));
        let registration = register(Timeout::Never)?;
        assert!(!listener.has_accf_af_ops());
        listener.attach(c"accf_kunit")?;
        assert!(listener.has_accf_af_ops());
        assert!(listener
            .attach(c"accf_kunit")
            .is_err_and(|error| error == EEXIST));
        drop(listener);
        drop(registration);
        Ok(())
    }

    #[test]
    fn a_socket_that_does_not_hold_its_namespace_is_refused() -> Result {
        let registration = register(Timeout::Never)?;
        let listener = TestListener::plain()?;
        let elsewhere = listener.leave_init_net()?;
        let refused = listener.attach(c"accf_kunit");
        let was_overridden = listener.has_accf_af_ops();
        elsewhere.hold(true);
        let attached = listener.attach(c"accf_kunit");
        drop(elsewhere);
        assert!(refused.is_err_and(|error| error == EOPNOTSUPP));
        assert!(!was_overridden);
        assert!(attached.is_ok());
        drop(listener);
        drop(registration);
        Ok(())
    }
}
