//! The settings as an operator meets them: precedence, defaults, and what a refusal says.

use std::io::Write as _;

use super::*;

fn load_with(args: &[&str], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let args = std::iter::once("saturn").chain(args.iter().copied());
    let env = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
    Config::from_matches(&command().try_get_matches_from(args)?, &env)
}

fn refusal(args: &[&str]) -> String {
    load_with(args, &[]).expect_err("refused").to_string()
}

fn yaml_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn path_of(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("temporary files have plain names")
}

#[test]
fn a_node_without_settings_is_alone_on_loopback() {
    let config = load_with(&[], &[]).expect("defaults are valid");
    assert_eq!(config.data_dir, PathBuf::from("./data"));
    assert!(!config.node_id.is_empty());
    assert_eq!(config.zone, "default");
    assert_eq!(config.http_listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.grpc_listen.to_string(), "127.0.0.1:9095");
    assert_eq!(config.gossip_listen.to_string(), "127.0.0.1:7946");
    assert_eq!((config.join, config.replication_factor, config.shards), (vec![], 1, 64));
    assert_eq!((config.log_level.as_str(), config.log_format), ("info", LogFormat::Logfmt));
    assert_eq!(config.default_tenant.as_str(), "anonymous");
    assert_eq!(config.secret, None);
    assert_eq!(config.moves_bytes_per_second.map(NonZeroU64::get), Some(50_000_000));
    let unlimited = load_with(&["--moves.bytes-per-second=0"], &[]).expect("valid");
    assert_eq!(unlimited.moves_bytes_per_second, None);
}

#[test]
fn a_node_that_joins_has_three_replicas() {
    let config = load_with(&["--cluster.join", "127.0.0.1:1,127.0.0.1:2"], &[]).expect("valid");
    assert_eq!((config.join.len(), config.replication_factor), (2, 3));
    let alone = refusal(&["--cluster.replication-factor=3"]);
    assert_eq!(
        alone,
        "--cluster.replication-factor is \"3\" (from the command line): want 1, because this node is alone; more needs --cluster.join"
    );
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = yaml_file("node: {id: from-file, zone: file-zone}\ncluster: {join: [a:1, b:2], shards: 8}\n");
    let from_file = load_with(&["--config.file", path_of(&file)], &[]).expect("valid");
    assert_eq!((from_file.node_id.as_str(), from_file.shards), ("from-file", 8));
    assert_eq!(from_file.join, ["a:1", "b:2"]);
    assert_eq!(from_file.replication_factor, 3);

    let variables = [
        ("SATURN_CONFIG_FILE", path_of(&file)),
        ("SATURN_NODE_ID", "from-env"),
        ("SATURN_CLUSTER_SHARDS", "16"),
    ];
    let from_env = load_with(&[], &variables).expect("valid");
    assert_eq!(
        (from_env.node_id.as_str(), from_env.shards, from_env.zone.as_str()),
        ("from-env", 16, "file-zone")
    );

    let from_flag = load_with(&["--node.id=from-flag"], &variables).expect("valid");
    assert_eq!((from_flag.node_id.as_str(), from_flag.shards), ("from-flag", 16));

    let empty = load_with(&[], &[("SATURN_NODE_ZONE", "")]).expect("valid");
    assert_eq!(empty.zone, "default", "an empty variable is unset");
}

#[test]
fn an_unknown_flag_comes_with_a_suggestion() {
    let text = refusal(&["--http.listn", "127.0.0.1:1"]);
    assert!(text.contains("'--http.listn'") && text.contains("'--http.listen'"), "{text}");
    let text = refusal(&["--cluster.replication_factor=3"]);
    assert!(text.contains("'--cluster.replication-factor'"), "{text}");
    assert!(matches!(load_with(&["--help"], &[]), Err(ConfigError::Usage(error)) if error.exit_code() == 0));
}

#[test]
fn an_unknown_key_comes_with_its_line_and_a_suggestion() {
    let file = yaml_file("data_dir: x\nhttp:\n  listn: 127.0.0.1:1\n");
    let text = refusal(&["--config.file", path_of(&file)]);
    assert_eq!(
        text,
        format!("{}, line 3: unknown key \"http.listn\", did you mean \"http.listen\"?", path_of(&file))
    );
}

#[test]
fn a_wrong_value_names_setting_value_bounds_and_origin() {
    let file = yaml_file("cluster:\n  shards: 70000\n");
    let text = refusal(&["--config.file", path_of(&file)]);
    let expected = format!(
        "--cluster.shards is \"70000\" (from {}, line 2): want a whole number from 1 to 4096",
        path_of(&file)
    );
    assert_eq!(text, expected);

    let text = load_with(&[], &[("SATURN_LOG_LEVEL", "loud")]).expect_err("refused").to_string();
    let expected = "--log.level is \"loud\" (from the environment variable SATURN_LOG_LEVEL): \
                    want one of error, warn, info, debug, trace";
    assert_eq!(text, expected);

    assert!(refusal(&["--cluster.shards", "-3"]).contains("want a whole number"));
    assert!(refusal(&["--tenant.default", "Team A"]).contains("--tenant.default is \"Team A\""));
    assert!(refusal(&["--http.listen", "0.0.0.0:9090"]).contains("say, 192.168.1.5:9090"));
    assert!(refusal(&["--config.file", "/nonexistent/saturn.yml"]).contains("/nonexistent/saturn.yml"));
    assert!(
        refusal(&["--grpc.listen", "127.0.0.1:9090"]).contains("--http.listen and --grpc.listen are both")
    );
}

#[test]
fn without_a_secret_only_loopback_is_accepted() {
    let text = refusal(&["--gossip.listen", "192.0.2.1:7946"]);
    assert!(text.starts_with("--gossip.listen is 192.0.2.1:7946, which other hosts can reach"), "{text}");

    let secret = yaml_file("a secret of enough bytes\n");
    let args = ["--gossip.listen", "192.0.2.1:7946", "--cluster.secret-file", path_of(&secret)];
    let config = load_with(&args, &[]).expect("the temporary file is its owner's only");
    assert_eq!(config.secret.as_ref().expect("read").secrets.expose(), [b"a secret of enough bytes"]);
    assert!(!format!("{config:?}").contains("enough bytes"));

    let short = yaml_file("short\n");
    let text = refusal(&["--cluster.secret-file", path_of(&short)]);
    assert!(text.contains("holds 5 bytes in line 1: want 16 to 4096"), "{text}");
}

#[test]
fn the_command_takes_subcommands_of_the_binary() {
    let command = command().subcommand(Command::new("demo"));
    let matches = command.try_get_matches_from(["saturn", "demo"]).expect("valid");
    assert_eq!(matches.subcommand_name(), Some("demo"));
    super::command().debug_assert();
}

#[test]
fn the_listing_is_a_file_that_sets_the_same() {
    let args = ["--cluster.join", "127.0.0.1:1,127.0.0.1:2", "--data-dir", "/tmp/a \"b\"", "--node.id", "n1"];
    let config = load_with(&args, &[]).expect("valid");
    assert_eq!(config.listing.flags()["cluster.replication-factor"], "3");
    assert_eq!(config.listing.flags()["config.file"], "");
    let file = yaml_file(&config.listing.yaml());
    let again = load_with(&["--config.file", path_of(&file)], &[]).expect("valid");
    assert_eq!(Config { listing: config.listing.clone(), ..again }, config);
}

#[test]
fn retention_has_a_default_classes_and_tenants() {
    let days = |n: u64| Some(std::time::Duration::from_secs(n * 86_400));
    let plain = load_with(&[], &[]).expect("valid").retention;
    assert_eq!(plain, saturn_storage::Retention::of_all(days(15)));
    let file = yaml_file(
        "storage:\n  tsdb:\n    retention: {time: 30d}\n  retention:\n    classes: [short=3d, long=1y]\n    tenants:\n      - team-a=short\n      - team-b=90d\n      - team-c=forever\n",
    );
    let retention = load_with(&["--config.file", path_of(&file)], &[]).expect("valid").retention;
    let of = |name: &str| retention.of(&TenantId::new(name).expect("valid"));
    assert_eq!((of("team-a"), of("team-b"), of("team-c")), (days(3), days(90), None));
    assert_eq!(of("other"), days(30));
    let forever = load_with(&["--storage.tsdb.retention.time=forever"], &[]).expect("valid").retention;
    assert_eq!(forever.default, None);
    for (flag, text, named) in [
        ("storage.tsdb.retention.time", "0", "from 2 to 876000 hours, or forever"),
        ("storage.tsdb.retention.time", "1h", "from 2 to 876000 hours"),
        ("storage.retention.classes", "a", "\"a\" is none"),
        ("storage.retention.classes", "a=1d,a=2d", "\"a\" is there twice"),
        ("storage.retention.classes", "a=ten", "class \"a\" has \"ten\""),
        ("storage.retention.tenants", "team=nowhere", "tenant \"team\" has \"nowhere\""),
        ("storage.retention.tenants", "NO TEAM=1d", "\"NO TEAM\" is none"),
    ] {
        let text = refusal(&[&format!("--{flag}={text}")]);
        assert!(text.contains(named) && text.contains(flag), "{text}");
    }
}

#[test]
fn a_switch_needs_no_value() {
    let admin = |args: &[&str]| load_with(args, &[]).expect("valid").admin;
    assert_eq!(admin(&[]), AdminApi::Disabled);
    assert_eq!(admin(&["--web.enable-admin-api"]), AdminApi::Enabled);
    assert_eq!(admin(&["--web.enable-admin-api=false"]), AdminApi::Disabled);
    let from_env = load_with(&[], &[("SATURN_WEB_ENABLE_ADMIN_API", "true")]).expect("valid");
    assert_eq!(from_env.admin, AdminApi::Enabled);
    assert!(refusal(&["--web.enable-admin-api=yes"]).contains("want true or false"));
}

#[test]
fn settings_of_storage_reach_the_engine() {
    let options = |args: &[&str]| {
        let config = load_with(args, &[]).expect("valid");
        config.storage.engine_options("data".into(), config.retention)
    };
    let (ours, engine) = (options(&[]), saturn_storage::EngineOptions::new("data"));
    assert_eq!((ours.series_idle, ours.index_cache_bytes), (engine.series_idle, engine.index_cache_bytes));
    assert_eq!(
        (ours.scrub_interval, ours.scrub_bytes_per_second),
        (engine.scrub_interval, engine.scrub_bytes_per_second)
    );
    let other = options(&[
        "--storage.series-idle=10m",
        "--storage.index-cache=1",
        "--storage.scrub.interval=0s",
        "--storage.scrub.rate=0",
    ]);
    assert_eq!((other.series_idle.as_secs(), other.index_cache_bytes), (600, 1 << 20));
    assert_eq!((other.scrub_interval, other.scrub_bytes_per_second), (None, None));
    for (wrong, wants) in [
        ("--storage.series-idle=1s", "from 60000 to 604800000 milliseconds"),
        ("--storage.series-idle=long", "a duration such as 1m30s"),
        ("--storage.index-cache=0", "from 1 to 65536"),
    ] {
        let text = refusal(&[wrong]);
        assert!(text.contains(wants), "{wrong}: {text}");
    }
}

#[test]
fn tenants_wait_for_what_they_are_set_to() {
    let durability = |args: &[&str]| {
        let config = load_with(args, &[]).expect("valid");
        config.storage.engine_options("data".into(), config.retention).durability
    };
    assert_eq!(durability(&[]), saturn_storage::DurabilityOptions::default());
    let mixed = durability(&[
        "--storage.durability.mode=interval",
        "--storage.durability.tenants=billing=fsync,test=interval",
        "--storage.durability.interval=50ms",
    ]);
    let of = |name: &str| format!("{:?}", mixed.of(&TenantId::new(name).expect("valid")));
    assert_eq!([of("billing"), of("test"), of("other")], ["Fsync", "Interval", "Interval"]);
    assert_eq!(mixed.interval.as_millis(), 50);
    for (wrong, wants) in [
        ("--storage.durability.mode=never", "one of fsync, interval"),
        ("--storage.durability.tenants=a=maybe", "tenant \"a\" has \"maybe\""),
        ("--storage.durability.tenants=A B=fsync", "\"A B\" is none"),
        ("--storage.durability.interval=1ms", "from 10 to 10000 milliseconds"),
    ] {
        let text = refusal(&[wrong]);
        assert!(text.contains(wants), "{wrong}: {text}");
    }
}
