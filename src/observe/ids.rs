//! `MESSAGE_ID` of each event, for `journalctl MESSAGE_ID=…` and the journal's catalog. An id never changes its meaning.

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $id:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $id;)*

        /// All of them, with the names of their events.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), $id),)*];
    };
}

ids! {
    /// A socket is open.
    LISTENING = "a47e63dfe92ac3f3b20c0313068eb5a5";
    /// The service takes mail.
    STARTED = "e9170338a2b89b6da6cf01a33859cc80";
    /// A signal asks us to stop.
    STOPPING = "d43d8db9f9317459751e87324e92a94e";
    /// Everything is stopped.
    STOPPED = "40db07dd3fb6bf50db9540d5140fbd6d";
    /// New settings are in use.
    RELOADED = "2e60a804da31de16bb36fbfba44e04ce";
    /// New settings are wrong; the old ones stay.
    RELOAD_REFUSED = "735769a98b27bfae53514ad61b629958";
    /// A setting works, and probably not as it was meant.
    SETTING_DOUBTFUL = "9f3c1d0b7a5e4c2f8e6d1b4a70c95e38";
    /// The directory file was read.
    DIRECTORY_READ = "183e0fc114fd91fd8a2d54fd428b50ca";
    /// A new directory file is broken, names no tenant or cannot be read; the old one stays.
    DIRECTORY_REFUSED = "7193cdecb77182343b30952dcc0d2502";
    /// The directory cannot answer; mail is deferred.
    DIRECTORY_UNAVAILABLE = "24352a83d58d3b552d5bd784a4ed15e5";
    /// Somebody said that what was learnt of tenants is past its time.
    DIRECTORY_EXPIRED = "d18a0534aab446e4ac543056025ff2de";
    /// Answers past their time are used.
    DIRECTORY_STALE = "b1a00ed4c8c870d2c39211b38a505096";
    /// A connection could not be accepted.
    ACCEPT_FAILED = "f554b7de5fea19f2d9dcf3b361856efa";
    /// A connection came when there was no place for it.
    DOOR_FULL = "6b1d0f3c52e94a7f8c0e94d7a1b3582e";
    /// A connection was closed to make room, or because its client was too slow.
    HUNG_UP = "e83c1a95f74d4b06b9d25f60c7418a3d";
    /// A recipient or message was refused or deferred.
    REFUSED = "7853e6e6f08a696fd7da2d8d2d5d1913";
    /// Not everybody whom a message names is listed.
    PEOPLE_LEFT_OUT = "3710181b77df0364bf5633cfbb73b2fe";
    /// A refusal the sender does not hear of.
    STRIPPED = "4a411d421bc6055978a79fb43f14c5b1";
    /// Nothing becomes of a message that was taken.
    DISCARDED = "5f1f9a6f0c3b4a0f9d5c7be8a2d14c63";
    /// An activity is on disk, or with the backend.
    RECORDED = "e43330ea4a2ea5ee75f43f1f9f015b92";
    /// Shadow mode: would be refused.
    WOULD_REFUSE = "47d48a0c9e932074ef296e080476c43b";
    /// Shadow mode: would be discarded.
    WOULD_DISCARD = "c9a4d7e1b8f64d2ba3e05c1f7d968b20";
    /// Shadow mode: would be recorded.
    WOULD_RECORD = "11fd1b3ddaad7af7f49296b684c6b973";
    /// Other people's mail.
    PASSED = "b478a924efd4e947f2995b60be5d121d";
    /// Something of ours failed.
    FAULT = "4ebd2c3aa5c5cd70d9bf8f84fac3ffdf";
    /// The backend has the activity.
    DELIVERED = "29eeca6fd0970edefba003a2dba6af01";
    /// An attempt failed for now.
    DEFERRED = "5a346af1fbd45a818de85dbab05ea2de";
    /// Direct mode: an attempt failed.
    NOT_DELIVERED = "d9ef9c68e45083e27318ebd24b85af22";
    /// Direct mode: our settings are wrong.
    BACKEND_REFUSES_US = "53c3f6542e000e1d92bfb66443b85af4";
    /// A person must look at an activity.
    HELD = "52a0deb2021ffcd072c443f5891dee09";
    /// Deliveries pause: our settings are wrong.
    COURIER_PAUSED = "09495aaaaa2ce14bb2cf002403845404";
    /// Deliveries pause: no answers.
    BACKEND_DOWN = "a09f902c49ed06b33a6c1794ab106255";
    /// The backend denies an activity.
    BACKEND_DENIES = "3e9ba2b01a184c12afb671f951da1925";
    /// Deliveries go on.
    COURIER_RESUMED = "ab678a2192ea9d433d041208f3bd7b50";
    /// Something was found in Severa that a lost answer had made.
    SEVERA_FOUND = "d3722e6481a270b0c15c7067417ef5c8";
    /// A person deleted the activity in Severa before its delivery was complete.
    SEVERA_ACTIVITY_GONE = "3e296b8ef12661da91654671b1bf28a9";
    /// Severa gave notes back without our marker.
    SEVERA_MARKER_LOST = "6eb73543b5920dc9f26bbc5ec4b8f9f9";
    /// Severa does not take a participant.
    SEVERA_PARTICIPANT_SKIPPED = "ac951f12fac96fdfa71e3e057bf18845";
    /// A file with a secret was read again.
    SECRET_READ = "d317145ad01559ad5f8a916400bc7bb5";
    /// A new secret is broken; the old one stays.
    SECRET_REFUSED = "7d87a07f243cdac853d128e6530f2e41";
    /// Somebody was told of held activities.
    NOTICE_SENT = "0e674066911fd99e6dd8ce9a1637a97d";
    /// A notice could not be sent.
    NOTICE_NOT_SENT = "d326fd365aa6d18dd2fbf0b272381034";
    /// No functions can be made in the queue's database.
    QUEUE_PLAIN = "1ec90338f9ac42cfa0243e7f44e22969";
    /// We stop, and what was delivered is not written down as safely as is asked.
    ENDS_OWED = "d54b1690d6674067bfe43a3d8513c8a9";
    /// A promise was seen broken.
    INVARIANT_VIOLATED = "f0b7c2a95d1e48a6b3d86e1c74f92a05";
    /// The queue's disk or database failed.
    QUEUE_TROUBLE = "c31ee51d3713b02584cacbe0549be0f6";
    /// The queue's database server does not answer.
    QUEUE_AWAY = "5d3e7c1f94b24c0e8a6f2b917d40c8e3";
    /// The queue's database server answers again.
    QUEUE_BACK = "b08f6a2d31e74957a4c5e9137f62d0ba";
    /// What the queue's database server commits is not as safe as the settings ask.
    QUEUE_UNSAFE = "e1c94b7035ad4f6c9b82d04e5a3f7168";
    /// It is as safe again.
    QUEUE_SAFE = "3a6f0d82c5b74e19a0d7f4c1862e95bb";
    /// Mail is kept in a file of this machine, until the database takes it.
    SPOOLING = "4f8e2b6c19d7403aa5c30e9b7f61d824";
    /// What was kept in a file of this machine is in the database.
    SPOOL_DRAINED = "c72d5a0f3e8b4961b4f9106d8ae37b5c";
    /// The clock leapt forward; nothing is held as too old for a day.
    CLOCK_LEAPT = "d839d233cc6b62fe0d4fa7fbcaec873c";
    /// The clock was wrong; times that lay ahead are mended.
    TIMES_MENDED = "229e4be0d8c7ce0e33c60f46996b1f84";
    /// Files in the spool that no activity needs are moved aside.
    FILES_ASIDE = "82a23c5dc7e1362a988e4cc6ab9f345e";
    /// The spool has files of other queues.
    FILES_OF_OTHERS = "0db5ca09e3bf1af15ea18cb8b702d944";
    /// The queue's log is long.
    LOG_LONG = "7fb44450c0d78c539ded27b81ff95805";
    /// The service works as root, because the queue's directory is root's.
    WORKS_AS_ROOT = "d60013187c244bf58e29cf96b5a0f47a";
    /// A person changed activities in the queue.
    QUEUE_CHANGED = "91715ad8a2ea7551b1bd61d6510ec632";
    /// A request to the admin door names another host.
    ADMIN_MISDIRECTED = "ea522257cae34f2a901d7792a825bbe8";
    /// A damaged trace was moved aside.
    TRACE_ASIDE = "74b79275b88a4c219885c929ed8b857e";
    /// The trace cannot be written.
    TRACE_UNKEPT = "c74174deabb84d73aa1a9c8ba3018241";
    /// The trace was moved away or replaced while it was written.
    TRACE_REPLACED = "fdac26e6545f678aeb46f28595399e34";
    /// Lines were left out because there were many like them.
    LINES_SUPPRESSED = "58232322f290c8c1a2ae4f0624a08272";
    /// The trace is written again.
    TRACE_GOES_ON = "04e30a5f353e4410b2f34e91f8343074";
    /// Records of the trace were not kept.
    TRACE_LOST = "cdb054a4bbc64224ba8cde510cc035d1";
    /// Delivered activities that were kept went before their time.
    KEPT_GONE = "7c5f5997ff9b436569347e92090274d8";
    /// Delivered activities that were kept are dropped, because the setting is off now.
    KEPT_OFF = "d2a914578d8c4b74a119cc9163e6e03a";
    /// The first copy of a company's Severa is begun.
    SEVERA_FIRST_PASS = "3642f4429cb6913911576b204119290d";
    /// How far the first copy of a company is.
    SEVERA_FIRST_PASS_GOES_ON = "7654b67a818e7863e8d86c52069b1391";
    /// A full pass over a company is completed.
    SEVERA_PASSED = "f499b58d76a2efe8d6bcd3d98964a315";
    /// A company cannot be synchronised.
    SEVERA_FAILS = "4323c7e5675b9bf275040b7b13c721ad";
    /// A company is synchronised again.
    SEVERA_GOES_ON = "08dd28fbe10e38a18a2a3923c5bbda9f";
    /// A file of copies is of no use, and is made anew.
    SEVERA_COPY_ASIDE = "4b2cf5549a52a18e518e0dce1a980d08";
    /// Copies cannot be written; memory has them.
    SEVERA_UNKEPT = "e2d0dec687f9b86090c7b21621dd50c0";
    /// An address belongs to several users.
    SEVERA_SHARED_ADDRESS = "ed5cca971dd1e620db1a2a0e31861981";
    /// The command ends with an error: the configuration is wrong, say, or a socket is in use.
    COMMAND_FAILED = "a3abc87d77d02ff6f5ae1378c2132ec1";
    /// Something of ours panicked.
    PANICKED = "0726e966405054c70daf3ff1a1cbb5a5";
    /// Lines of the log could not be written.
    LOG_LINES_LOST = "99058eddb68fced598f56b6c6d481cec";
}
