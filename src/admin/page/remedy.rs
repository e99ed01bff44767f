//! What to do about what is not well: a sentence, and where the rest stands.

/// A sentence, and a heading of a document of the door.
pub(super) type Remedy = (&'static str, &'static str);

/// What to do about a check that is not ok. `misconfigured`: deliveries pause because our settings are wrong.
pub(super) fn of_check(name: &str, misconfigured: bool) -> Remedy {
    match name {
        "listeners" => (
            "The service is stopping: systemctl status activity-milter says why.",
            "/docs/operations#activitymilterdown",
        ),
        "queue" => (
            "New mail is told to come again until the queue can be written: free some space, or see the disk.",
            "/docs/operations#the-disk-is-full",
        ),
        "directory" => (
            "Mail whose people nobody knows is told to come again. See the business system, and \
             activity-milter directory lookup.",
            "/docs/operations#activitymilterdirectoryfails",
        ),
        "deliveries" if misconfigured => (
            "Mail is accepted and waits. Repair backend.url or the credential: the next probe comes within a minute.",
            "/docs/operations#activitymilterbackendrefusesus",
        ),
        "deliveries" => (
            "Mail is accepted and waits. The business system does not answer: repair it there; probes go on each minute.",
            "/docs/operations#activitymilterbackenddown",
        ),
        "tenants" => (
            "Their activities wait, and nobody else's do. Repair their credentials; probes go on by themselves.",
            "/docs/operations#activitymiltertenantrefused",
        ),
        "versions" => (
            "Repair the line, and reload if it is the configuration: a restart would not start with it.",
            "/docs/operations#activitymilternewversionrefused",
        ),
        "restart" => (
            "systemctl restart activity-milter, or put the old values back and reload. Postfix keeps the mail meanwhile.",
            "/docs/operations#reload-restart-upgrade",
        ),
        "copies" => (
            "Known users' mail is still accepted. See the company's credentials, and whether Severa answers.",
            "/docs/operations#activitymilterseveracopyold",
        ),
        "trace" => {
            ("Mail goes on. See permissions and space at its path.", "/docs/operations#find-one-mail-again")
        }
        _ => ("activity-milter check says more.", "/docs/operations#look"),
    }
}

/// What waits too long.
pub(super) const OLD: Remedy = (
    "If deliveries are paused, that is why. If not, the last error of what waits says why.",
    "/docs/operations#activitymilterqueueold",
);

/// What to do about what is held for this reason.
pub(super) fn of_held(reason: &str) -> Remedy {
    if reason.starts_with("not taken within") {
        let text = "The business system was away for long. Is it back: retry.";
        return (text, "/docs/operations#the-backend-is-down-for-a-day");
    }
    if reason.starts_with("held by hand") {
        return ("Somebody holds them. Ask, then retry.", "/docs/operations#look");
    }
    ("Repair what the reason names, then retry.", "/docs/operations#activitymilterheld")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::manual;

    #[test]
    fn each_remedy_stands_where_it_says() {
        let checks = [
            "listeners",
            "queue",
            "directory",
            "deliveries",
            "tenants",
            "versions",
            "restart",
            "copies",
            "trace",
            "?",
        ];
        let checks = checks.iter().flat_map(|name| [of_check(name, false), of_check(name, true)]);
        let held = ["not taken within 5days: x", "held by hand", "backend answered 422"].map(of_held);
        for (text, link) in checks.chain(held).chain([OLD]) {
            assert!(manual::has(link), "{link}");
            assert!(text.ends_with('.'), "{text}");
        }
        assert!(!manual::has("/docs/operations#nothing"));
    }

    #[test]
    fn each_reason_of_a_refusal_has_its_heading() {
        for &reason in crate::rules::Reason::ALL {
            assert!(manual::has(&format!("/docs/replies#{}", reason.as_str())), "{}", reason.as_str());
        }
    }
}
