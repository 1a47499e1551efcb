//! The headers that this control knows, and the value each has in a profile.
//!
//! Source: the OWASP Secure Headers Project, "best practices" and its list of headers to add
//! (owasp.org/www-project-secure-headers, as it stood in July 2026), without `Cache-Control` and `Clear-Site-Data`, which would
//! change what an application does.

use crate::settings::{Profile, Setting, Settings};

/// A header that has a key of its own in the configuration.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    pub(crate) key: &'static str,
    pub(crate) setting: fn(&Settings) -> &Setting,
    value: &'static str,
    /// The least of the profiles that has it on.
    since: Profile,
}

impl Known {
    /// The value that `profile` gives it.
    pub(crate) fn value(&self, profile: Profile) -> Option<&'static str> {
        let on = match self.since {
            Profile::Hsts => true,
            Profile::Api => profile != Profile::Hsts,
            Profile::Website => profile == Profile::Website,
        };
        on.then_some(self.value)
    }
}

/// Every header that has a key of its own.
pub(crate) static KNOWN: [Known; 10] = [
    Known {
        name: "strict-transport-security",
        key: "strict_transport_security",
        setting: |settings| &settings.strict_transport_security,
        value: "max-age=63072000; includeSubDomains",
        since: Profile::Hsts,
    },
    Known {
        name: "x-content-type-options",
        key: "x_content_type_options",
        setting: |settings| &settings.x_content_type_options,
        value: "nosniff",
        since: Profile::Api,
    },
    Known {
        name: "x-frame-options",
        key: "x_frame_options",
        setting: |settings| &settings.x_frame_options,
        value: "DENY",
        since: Profile::Api,
    },
    Known {
        name: "referrer-policy",
        key: "referrer_policy",
        setting: |settings| &settings.referrer_policy,
        value: "no-referrer",
        since: Profile::Api,
    },
    Known {
        name: "permissions-policy",
        key: "permissions_policy",
        setting: |settings| &settings.permissions_policy,
        value: "accelerometer=(), autoplay=(), camera=(), cross-origin-isolated=(), display-capture=(), encrypted-media=(), \
                fullscreen=(), geolocation=(), gyroscope=(), keyboard-map=(), magnetometer=(), microphone=(), midi=(), \
                payment=(), picture-in-picture=(), publickey-credentials-get=(), screen-wake-lock=(), sync-xhr=(self), \
                usb=(), web-share=(), xr-spatial-tracking=(), clipboard-read=(), clipboard-write=(), gamepad=(), hid=(), \
                idle-detection=(), interest-cohort=(), serial=(), unload=()",
        since: Profile::Api,
    },
    Known {
        name: "x-permitted-cross-domain-policies",
        key: "x_permitted_cross_domain_policies",
        setting: |settings| &settings.x_permitted_cross_domain_policies,
        value: "none",
        since: Profile::Api,
    },
    Known {
        name: "content-security-policy",
        key: "content_security_policy",
        setting: |settings| &settings.content_security_policy,
        value: "default-src 'self'; form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors 'none'; \
                upgrade-insecure-requests",
        since: Profile::Website,
    },
    Known {
        name: "cross-origin-opener-policy",
        key: "cross_origin_opener_policy",
        setting: |settings| &settings.cross_origin_opener_policy,
        value: "same-origin",
        since: Profile::Website,
    },
    Known {
        name: "cross-origin-embedder-policy",
        key: "cross_origin_embedder_policy",
        setting: |settings| &settings.cross_origin_embedder_policy,
        value: "require-corp",
        since: Profile::Website,
    },
    Known {
        name: "cross-origin-resource-policy",
        key: "cross_origin_resource_policy",
        setting: |settings| &settings.cross_origin_resource_policy,
        value: "same-origin",
        since: Profile::Website,
    },
];
