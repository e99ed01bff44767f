//! What the world does to the copy: clocks, files that others have, lists that say something else, strangers. Each of
//! these once broke a promise.

use super::*;

/// One answer of a poll comes from a machine whose clock is an hour ahead: what changes until the next poll is known all the same.
#[tokio::test(flavor = "multi_thread")]
async fn one_answer_with_a_date_ahead_costs_no_change() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 2, 2, 2);
    let poll = Duration::from_millis(1500);
    let directory = world.start(poll, NEVER);
    complete(&directory).await;
    world.poll().await;
    let ahead = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3600));
    company.fault(
        "GET",
        PROJECTS,
        1,
        Fault::Answer {
            status: 200,
            content_type: "application/json",
            body: "[]".to_owned(),
            headers: vec![("Date", ahead)],
        },
    );
    let before = world.changed_since(PROJECTS);
    wait("the poll with the wrong date", || world.changed_since(PROJECTS) > before).await;
    // The next poll notes a wrong `since`.
    let before = world.changed_since(PROJECTS);
    wait("the poll after it", || world.changed_since(PROJECTS) > before).await;
    sleep(Duration::from_millis(300)).await;
    let guid = company.add_user("new@mycompany.test", "New", "User");
    for _ in 0..4 {
        world.poll().await;
    }
    let queries: Vec<_> = world
        .severa
        .calls()
        .into_iter()
        .filter(|c| c.path == USERS && c.query.contains("changedSince"))
        .map(|c| c.query.split('&').next().unwrap_or_default().to_owned())
        .collect();
    // MARGIN is 60 s: polls of this test are nearer together than that, so that what is asked from tells.
    let shortly = std::time::SystemTime::now() + Duration::from_secs(600);
    let ahead = humantime::format_rfc3339_seconds(shortly).to_string().replace(':', "%3A");
    let wrong: Vec<_> =
        queries.iter().filter(|q| q.trim_start_matches("changedSince=") > ahead.as_str()).collect();
    assert!(wrong.is_empty(), "polls asked for changes from a time to come: {wrong:?}");
    assert_eq!(user(&directory, "new@mycompany.test").await, Some(guid));
}

/// The file cannot be read at the start, because somebody has it: what two passes lack is gone also after the next start.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_file_that_could_not_be_read_do_not_come_back() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 3, 2, 2);
    let ghost = company.add_user("ghost@mycompany.test", "Ghost", "G");
    let directory = world.start(SOON, Duration::from_millis(300));
    complete(&directory).await;
    let passes = |n: usize| {
        let calls = world.severa.calls();
        calls.iter().filter(|c| c.path == USERS && c.query.contains("isActive")).count() >= n
    };
    wait("ten passes", || passes(8)).await;
    drop(directory);
    sleep(Duration::from_millis(300)).await;
    company.remove_user(&ghost);
    let other = rusqlite::Connection::open(world.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let directory = world.start(SOON, NEVER);
    other.execute_batch("COMMIT").unwrap();
    drop(other);
    complete(&directory).await;
    assert_eq!(user(&directory, "ghost@mycompany.test").await, None);
    world.poll().await;
    drop(directory);
    sleep(Duration::from_millis(300)).await;
    let directory = world.start(SOON, Duration::from_millis(300));
    let began =
        world.severa.calls().iter().filter(|c| c.path == USERS && c.query.contains("isActive")).count();
    wait("four passes more", || passes(began + 4)).await;
    sleep(Duration::from_millis(600)).await;
    assert_eq!(user(&directory, "ghost@mycompany.test").await, None, "a user whom four passes lacked");
}

/// Somebody has the file for himself alone at the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_has_alone_does_not_stop_the_service() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 3, 2, 2);
    drop(world.start(SOON, NEVER));
    sleep(Duration::from_millis(300)).await;
    let other = rusqlite::Connection::open(world.path()).unwrap();
    other
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE IF NOT EXISTS x (y); COMMIT;",
        )
        .unwrap();
    let started = SeveraDirectory::start(&world.settings(SOON, NEVER), vec![world.tenant("mycompany", "id")]);
    assert!(started.is_ok(), "{}", started.err().unwrap());
}

/// Twenty companies, and somebody who writes to the file: the start is not held up.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_file_does_not_hold_up_the_start_of_many_companies() {
    let world = World::new();
    let tenants = || (0..8).map(|n| world.tenant(&format!("c{n}"), &format!("id{n}"))).collect::<Vec<_>>();
    for n in 0..8 {
        world.severa.company(&format!("id{n}"), "secret");
    }
    drop(SeveraDirectory::start(&world.settings(SOON, NEVER), tenants()).unwrap());
    sleep(Duration::from_millis(300)).await;
    let other = rusqlite::Connection::open(world.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    let started = SeveraDirectory::start(&world.settings(SOON, NEVER), tenants());
    println!("{:?} for 8 companies: {:?}", began.elapsed(), started.is_ok());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Rows of users that a later version writes otherwise: nobody is refused by what could not be read.
#[tokio::test(flavor = "multi_thread")]
async fn users_that_cannot_be_read_are_not_gone() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 2, 2, 2);
    let directory = world.start(NEVER, Duration::from_millis(300));
    complete(&directory).await;
    assert!(user(&directory, "user0@mycompany.test").await.is_some());
    let body = r#"[{"guid":"1","email":"user0@mycompany.test","isActive":"Active"},{"guid":"2","email":"user1@mycompany.test","isActive":"Active"}]"#;
    for _ in 0..6 {
        company.fault(
            "GET",
            USERS,
            1,
            Fault::Answer {
                status: 200,
                content_type: "application/json",
                body: body.to_owned(),
                headers: Vec::new(),
            },
        );
    }
    wait("six passes", || world.severa.faults_left() == 0).await;
    let known = user(&directory, "user0@mycompany.test").await.is_some();
    assert!(
        known || state(&directory).is_stale || !state(&directory).is_well(),
        "every user is gone, and all is well: {}",
        state(&directory)
    );
}

/// Lookups whose answers are hostile.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_lists_end() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 2, 2, 2);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in
        [deep, "{".repeat(1000), "null".to_owned(), "[null, 1, \"x\", [[]], {}]".to_owned(), String::new()]
    {
        company.fault(
            "GET",
            USERS,
            1,
            Fault::Answer {
                status: 200,
                content_type: "application/json",
                body,
                headers: vec![("NextPageToken", "\u{1}".to_owned().replace('\u{1}', "  "))],
            },
        );
    }
    let directory = world.start(SOON, Duration::from_millis(300));
    complete(&directory).await;
    wait("all faults", || world.severa.faults_left() == 0).await;
    wait("users", || state(&directory).users == 2).await;
}

/// The file is removed, cut or overwritten while it is open.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_taken_away_while_open() {
    for what in ["removed", "cut", "overwritten", "removed with its log", "a folder in its place"] {
        let world = World::new();
        let company = world.severa.company("id", "secret");
        fill(&company, 5, 20, 5);
        let directory = world.start(SOON, Duration::from_millis(500));
        complete(&directory).await;
        world.poll().await;
        let path = world.path();
        let beside = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
        match what {
            "removed" => fs::remove_file(&path).unwrap(),
            "cut" => fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap(),
            "overwritten" => fs::write(&path, vec![7_u8; 50_000]).unwrap(),
            "a folder in its place" => {
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
            }
            _ => {
                for end in ["", "-wal", "-shm"] {
                    let _ = fs::remove_file(beside(end));
                }
            }
        }
        company.add_user("late@mycompany.test", "L", "L");
        world.poll().await;
        world.poll().await;
        assert!(user(&directory, "late@mycompany.test").await.is_some(), "{what}");
        drop(directory);
        sleep(Duration::from_millis(500)).await;
        world.severa.down();
        // A folder is for a person to look at; anything else is made anew.
        let again =
            SeveraDirectory::start(&world.settings(SOON, NEVER), vec![world.tenant("mycompany", "id")]);
        assert_eq!(again.is_err(), what == "a folder in its place", "{what}");
    }
}

/// An alias that names its user by the guid, as the API writes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_guid_in_capital_letters_names_its_user() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    let body = r#"[{"guid":"5E7E4A00-0000-4000-8000-0000000000AB","email":"anna@mycompany.test","firstName":"A","lastName":"B","isActive":true}]"#;
    company.fault(
        "GET",
        USERS,
        1,
        Fault::Answer {
            status: 200,
            content_type: "application/json",
            body: body.to_owned(),
            headers: Vec::new(),
        },
    );
    let mut tenant = world.tenant("mycompany", "id");
    tenant.aliases =
        [("5E7E4A00-0000-4000-8000-0000000000AB".to_owned(), vec![Address::parse("aa@old.test").unwrap()])]
            .into();
    let directory = SeveraDirectory::start(&world.settings(NEVER, NEVER), vec![tenant]).unwrap();
    complete(&directory).await;
    assert!(user(&directory, "aa@old.test").await.is_some());
}

/// A poll of many pages, of which now and then one is lost, ends some time.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_with_lost_answers_ends() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 2, 2, 2);
    let directory = world.start(SOON, NEVER);
    complete(&directory).await;
    world.poll().await;
    company.row_limit(1);
    for n in 0..30 {
        company.add_user(&format!("n{n}@mycompany.test"), "N", "N");
    }
    // One of twenty answers is lost.
    for n in 1..=20 {
        company.fault("GET", USERS, n * 20, Fault::LoseBefore);
    }
    let before = world.changed_since(PROJECTS);
    let began = Instant::now();
    while world.changed_since(PROJECTS) == before && began.elapsed() < Duration::from_secs(25) {
        sleep(Duration::from_millis(100)).await;
    }
    println!("{}; {} calls of users", state(&directory), world.changed_since(USERS));
    assert!(world.changed_since(PROJECTS) > before, "no poll came to its end in 25 s");
}

/// `check`, in a process of its own, says how far the first copy is.
#[tokio::test(flavor = "multi_thread")]
async fn check_says_how_far_the_first_copy_is() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 2, 3000, 2);
    let _serve = world.start(SOON, NEVER);
    sleep(Duration::from_millis(1500)).await;
    let read =
        SeveraDirectory::open(&world.settings(SOON, NEVER), vec![world.tenant("mycompany", "id")]).unwrap();
    let text = state(&read).to_string();
    assert!(!text.contains("there is no copy yet"), "{text}");
}

/// S12.
#[tokio::test(flavor = "multi_thread")]
async fn many_strangers_do_not_lock_out_a_sales_case() {
    let world = World::new();
    let company = world.severa.company("id", "secret");
    fill(&company, 2, 2, 2);
    company.add_sales_case(5000, "Case", None);
    let directory = world.start(NEVER, NEVER);
    complete(&directory).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let (d, s) = (Arc::clone(&directory), stop.clone());
    tokio::spawn(async move {
        let mut n = 100_000;
        while !s.is_cancelled() {
            n += 1;
            let d = Arc::clone(&d);
            tokio::spawn(async move {
                let _ = project(&d, &n.to_string()).await;
            });
            sleep(Duration::from_millis(20)).await;
        }
    });
    sleep(Duration::from_secs(2)).await;
    let (mut found, mut tries) = (false, 0);
    let began = Instant::now();
    while !found && began.elapsed() < Duration::from_secs(20) {
        tries += 1;
        found = matches!(project(&directory, "5000").await, Ok(Some(_)));
        sleep(Duration::from_millis(1000)).await;
    }
    stop.cancel();
    println!("found {found} after {tries} tries, {:?}", began.elapsed());
    assert!(found && tries <= 3, "who asks again goes before strangers");
}

/// Who only changes the type leaves the path of a directory file: that is no copy of ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_file_is_not_put_aside() {
    let world = World::new();
    world.severa.company("id", "secret");
    let text = include_str!("../directory.toml");
    fs::write(world.path(), text).unwrap();
    let tenants = || vec![world.tenant("mycompany", "id")];
    let settings = world.settings(NEVER, NEVER);
    for error in [
        SeveraDirectory::start(&settings, tenants()).err().map(|error| error.to_string()),
        SeveraDirectory::open(&settings, tenants()).err().map(|error| error.to_string()),
    ] {
        let error = error.expect("an error");
        assert!(error.contains("is no copy of Severa: give directory.path a file of its own"), "{error}");
    }
    assert_eq!(fs::read_to_string(world.path()).unwrap(), text);
    assert_eq!(fs::read_dir(world.folder.path()).unwrap().count(), 2, "the file and the secret");
}

/// Addresses with one client id have one budget for strangers' numbers.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_spend_two_calls_a_second_of_an_account() {
    let world = World::new();
    world.severa.company("id", "secret").add_user("a@x.test", "A", "B");
    let client = world.client("id");
    let prefixes = ["p", "q", "r", "s"];
    let tenant = |prefix: &&str| SeveraTenant { client: Arc::clone(&client), ..world.tenant(prefix, "id") };
    let tenants = prefixes.iter().map(tenant).collect();
    let directory = SeveraDirectory::start(&world.settings(NEVER, NEVER), tenants).unwrap();
    wait("all copies", || directory.copies().iter().all(|copy| copy.is_complete)).await;
    let before = world.severa.calls().len();
    let mut strangers = tokio::task::JoinSet::new();
    for (number, prefix) in (0..50).flat_map(|number| prefixes.map(|prefix| (number, prefix))) {
        let directory = Arc::clone(&directory);
        strangers.spawn(async move {
            let tenant = directory.tenant(prefix).await.unwrap().unwrap();
            let _ = directory.project(&tenant, &number.to_string(), &[]).await;
        });
    }
    sleep(Duration::from_secs(4)).await;
    let calls = world.severa.calls().len() - before;
    assert!(calls <= 11, "{calls}");
}
