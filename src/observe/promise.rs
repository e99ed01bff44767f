//! The promises of `docs/promises.md` that a running service can see broken, should they ever be.
//!
//! Whoever sees it calls [`super::events::broken`]: one is counted, and the log says what was seen. Mail goes on. What is
//! seen here no fault of others explains: it is ours, or what we keep was changed behind our back.

macro_rules! promises {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// A promise, by what it is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Promise {
            $($(#[$doc])* $name,)*
        }

        impl Promise {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its number on the page.
            pub fn number(self) -> &'static str {
                match self {
                    $(Self::$name => $number,)*
                }
            }
        }
    };
}

promises! {
    /// What was accepted is there, message and all.
    Stored = "Q1";
    /// All activities of a message are stored, or none.
    AllOrNone = "Q2";
    /// Room that was reserved comes back once.
    Room = "Q11";
    /// Who has a lease has it alone.
    Lease = "Q14";
    /// The numbers of a tenant are right.
    Numbers = "Q24";
    /// An activity has an owner, and everybody once.
    Parties = "R1";
    /// Notes are as long as they may be at most, and end in the marker.
    Notes = "S6";
    /// Each recipient is answered once.
    Answers = "D2";
}
