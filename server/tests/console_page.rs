//! The console's page in a real browser. With `PINTLE_REWRITE=1` the screenshots in `docs/console` are taken anew, to be
//! looked at before they are committed.

mod browser;
mod member;

use std::path::Path;

use browser::Page;
use member::{Member, Places};
use proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, DeleteRangeRequest, PutRequest, auth_client::AuthClient, kv_client::KvClient,
};
use tonic::transport::Channel;

/// What would run if a key or a value were taken for HTML.
const HOSTILE_KEY: &str = "<img src=x onerror=document.title='caught'>";
const HOSTILE_VALUE: &str = "<script>document.title='caught'</script>\u{202e}<svg onload=document.title='caught'>";
const VIEWS: [&str; 4] = ["cluster", "keys", "sizes", "watch"];

async fn kv(member: &Member) -> KvClient<Channel> {
    KvClient::connect(member.endpoint()).await.unwrap()
}

async fn put(kv: &mut KvClient<Channel>, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
    let put = PutRequest { key: key.into().into(), value: value.into().into(), ..Default::default() };
    kv.put(put).await.unwrap();
}

fn console(member: &Member) -> String {
    format!("{}/console/", member.endpoint())
}

/// A key, as the page has it in its address.
fn at(view: &str, key: &str) -> String {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    format!("location.hash = '#/{view}/{}'", BASE64_URL_SAFE_NO_PAD.encode(key))
}

async fn screenshot(page: &mut Page, name: &str) {
    if std::env::var_os("PINTLE_REWRITE").is_some() {
        let file = Path::new("../docs/console").join(name);
        page.screenshot(&file).await;
        let bytes = std::fs::metadata(&file).unwrap().len();
        assert!(bytes < 150 << 10, "{name} has {bytes} bytes");
    }
}

/// Nothing was complained of, and nothing asked of anybody else.
fn assert_clean(page: &Page, member: &Member) {
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
    let elsewhere = |url: &&String| !url.starts_with(&format!("{}/", member.endpoint()));
    let elsewhere: Vec<&String> = page.asked.iter().filter(elsewhere).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// Protobuf's length-delimited field.
fn field(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// A Deployment as Kubernetes stores it.
fn deployment(replicas: u8, image: &str) -> Vec<u8> {
    let label = field(11, [field(1, "app"), field(2, "cart")].concat());
    let meta = [field(1, "cart"), field(3, "shop"), field(5, "2f0c9a52-6f5e-4b1c-9f0e-1d8a4f6c7b11"), label].concat();
    let container = [field(1, "cart"), field(2, image)].concat();
    let spec = [vec![8, replicas], field(3, field(2, field(2, container)))].concat();
    let object = [field(1, meta), field(2, spec)].concat();
    let kind = [field(1, "apps/v1"), field(2, "Deployment")].concat();
    [b"k8s\0".to_vec(), field(1, kind), field(2, object), field(3, ""), field(4, "")].concat()
}

/// Some keys as a cluster of Kubernetes has them.
async fn fill(kv: &mut KvClient<Channel>) {
    for i in 0..60 {
        let (folder, size) = [("configmaps/default", 700), ("pods/shop", 2600), ("leases/kube-node-lease", 300)][i % 3];
        let value = format!(r#"{{"apiVersion":"v1","metadata":{{"name":"item-{i}"}},"data":"{}"}}"#, "x".repeat(size));
        put(kv, format!("/registry/{folder}/item-{i}"), value).await;
    }
    for (replicas, image) in [(1, "shop/cart:1.4.0"), (3, "shop/cart:1.4.0"), (3, "shop/cart:1.5.1")] {
        put(kv, CART, deployment(replicas, image)).await;
    }
}

const CART: &str = "/registry/deployments/shop/cart";

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_cluster_and_a_member_that_is_down() {
    let places = Places::new();
    let mut members = places.start_all(&["--console"]);
    let mut client = kv(&members[0]).await;
    fill(&mut client).await;
    let mut page = Page::open(&console(&members[0])).await;
    page.wait_for("document.querySelector('#health').textContent === 'Healthy'").await;
    page.wait_for("document.querySelectorAll('tbody tr').length === 3").await;
    let names = page
        .evaluate("[...document.querySelectorAll('tbody tr td:first-child')].map((cell) => cell.innerText.slice(0, 2))")
        .await;
    assert_eq!(names, serde_json::json!(["m0", "m1", "m2"]));
    if std::env::var_os("PINTLE_REWRITE").is_some() {
        work(&mut client, 100).await;
    }
    page.wait_for("document.querySelectorAll('.plot path[d^=M]').length >= 4").await;
    screenshot(&mut page, "healthy.png").await;
    assert_eq!(members.pop().unwrap().stop(), Some(0));
    page.wait_for("document.querySelector('#health').textContent === '1 of 3 members down'").await;
    page.wait_for_text("Down").await;
    screenshot(&mut page, "member-down.png").await;
    assert_clean(&page, &members[0]);
}

/// Reads and writes for so many seconds.
async fn work(kv: &mut KvClient<Channel>, seconds: u64) {
    let began = tokio::time::Instant::now();
    let mut turn = 0_u32;
    while began.elapsed().as_secs() < seconds {
        put(kv, format!("/registry/leases/kube-node-lease/item-{}", turn % 20), format!("{turn}")).await;
        for _ in 0..turn % 7 {
            let range = proto::etcdserverpb::RangeRequest { key: CART.into(), ..Default::default() };
            kv.range(range).await.unwrap();
        }
        turn += 1;
        // A delay, and nobody's event: a rate that rises and falls is what the plots are to show.
        tokio::time::sleep(std::time::Duration::from_millis(u64::from(10 + turn / 10 % 30))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_history_is_shown_with_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    let mut client = kv(&member).await;
    fill(&mut client).await;
    let mut page = Page::open(&console(&member)).await;
    page.evaluate(&at("key", CART)).await;
    for text in [
        "Kubernetes (protobuf)",
        "apps/v1",
        "Deployment",
        "shop",
        "+         2: \"shop/cart:1.5.1\"",
        "labels \"app\": \"cart\"",
    ] {
        page.wait_for_text(text).await;
    }
    let removed = "[...document.querySelectorAll('.diff .removed')].map((line) => line.textContent).join()";
    assert_eq!(page.evaluate(removed).await, "-         2: \"shop/cart:1.4.0\"");
    screenshot(&mut page, "history.png").await;
    page.evaluate("document.querySelectorAll('.versions button')[1].click()").await;
    page.wait_for(&format!("{removed} === '-   1: 1'")).await;
    client.delete_range(DeleteRangeRequest { key: CART.into(), ..Default::default() }).await.unwrap();
    page.go(&console(&member)).await;
    page.evaluate(&at("key", CART)).await;
    page.wait_for_text("The key was deleted.").await;
    assert_clean(&page, &member);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_text_and_bytes_are_shown_as_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    let mut client = kv(&member).await;
    put(&mut client, "json", r#"{"b":12345678901234567890,"a":[],"c":{"d":"{\"x\""}}"#).await;
    put(&mut client, "text", "one\ntwo\tthree").await;
    put(&mut client, b"bytes\xff".as_slice(), b"\x00\x01ab".as_slice()).await;
    put(&mut client, "k8s", b"k8s\0\xff\xff\xff".as_slice()).await;
    let mut page = Page::open(&console(&member)).await;
    page.evaluate("location.hash = '#/keys'").await;
    page.wait_for_text("bytes\\xff").await;
    let expected = [
        ("json", "{\n  \"b\": 12345678901234567890,\n  \"a\": [],\n  \"c\": {\n    \"d\": \"{\\\"x\\\"\"\n  }\n}"),
        ("text", "one\ntwo    three"),
        ("bytes\\xff", "000000  00 01 61 62                                      ..ab"),
        ("k8s", "000000  6b 38 73 00 ff ff ff                             k8s...."),
    ];
    for (key, value) in expected {
        page.evaluate("location.hash = '#/keys'").await;
        let link = format!(
            "[...document.querySelectorAll('main td a')].find((link) => link.textContent === {})",
            serde_json::json!(key)
        );
        page.wait_for(&link).await;
        page.evaluate(&format!("{link}.click()")).await;
        page.wait_for(&format!("document.querySelector('pre')?.textContent === {}", serde_json::json!(value))).await;
    }
    assert_clean(&page, &member);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_are_never_html() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    let mut client = kv(&member).await;
    put(&mut client, HOSTILE_KEY, HOSTILE_VALUE).await;
    put(&mut client, HOSTILE_KEY, format!("{{\"{}\":1}}", HOSTILE_KEY)).await;
    put(&mut client, HOSTILE_KEY, HOSTILE_VALUE).await;
    let mut page = Page::open(&console(&member)).await;
    for view in ["keys", "sizes"] {
        page.evaluate(&format!("location.hash = '#/{view}'")).await;
        page.wait_for_text(HOSTILE_KEY).await;
    }
    page.evaluate(&at("key", HOSTILE_KEY)).await;
    page.wait_for_text("<script>document.title='caught'</script>\\xe2\\x80\\xae<svg").await;
    page.evaluate(&at("watch", HOSTILE_KEY)).await;
    page.wait_for_text("Watching.").await;
    put(&mut client, HOSTILE_KEY, HOSTILE_VALUE).await;
    page.wait_for_text("1 event.").await;
    let injected = "document.querySelectorAll('main img, main script, main svg').length";
    assert_eq!(page.evaluate(injected).await, 0);
    assert_eq!(page.evaluate("document.title").await, "Watch · Pintle");
    assert_clean(&page, &member);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_shown_as_they_happen() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    let mut client = kv(&member).await;
    let mut page = Page::open(&console(&member)).await;
    page.evaluate(&at("watch", "/w/")).await;
    page.wait_for_text("Watching.").await;
    put(&mut client, "/other", "no").await;
    put(&mut client, "/w/a", "first").await;
    client.delete_range(DeleteRangeRequest { key: "/w/a".into(), ..Default::default() }).await.unwrap();
    page.wait_for_text("2 events.").await;
    let events =
        page.evaluate("[...document.querySelectorAll('.events li')].map((event) => event.innerText).join('|')").await;
    assert_eq!(events, "Delete /w/a revision 4|Put /w/a revision 3\nfirst");
    page.evaluate("[...document.querySelectorAll('button')].find((button) => button.textContent === 'Stop').click()")
        .await;
    page.wait_for_text("Stopped.").await;
    assert_clean(&page, &member);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_reaches_everything() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    let mut client = kv(&member).await;
    put(&mut client, "/a/b", "c").await;
    let mut page = Page::open(&console(&member)).await;
    page.wait_for_text("Members").await;
    let focused = "document.activeElement.textContent";
    for name in ["Skip to content", "Pintle", "Cluster", "Keys"] {
        page.press("Tab").await;
        assert_eq!(page.evaluate(focused).await, name);
    }
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(page.evaluate(outline).await, "solid", "what has the focus can be seen");
    page.press("Enter").await;
    page.wait_for_text("1 key").await;
    assert_eq!(page.evaluate(focused).await, "Keys", "a new view begins with its heading");
    assert_eq!(page.evaluate("document.querySelector('nav [aria-current]').textContent").await, "Keys");
    page.press("Tab").await;
    page.evaluate("document.activeElement.select()").await;
    page.write("/a/").await;
    page.press("Enter").await;
    page.wait_for("location.hash === '#/keys/L2Ev' && document.querySelector('td a')").await;
    for _ in 0..3 {
        page.press("Tab").await;
    }
    assert_eq!(page.evaluate(focused).await, "/a/b");
    page.press("Enter").await;
    page.wait_for("document.querySelector('.versions button')").await;
    page.evaluate("document.querySelector('.versions button').focus()").await;
    page.press("Space").await;
    assert_eq!(page.evaluate("document.activeElement.getAttribute('aria-pressed')").await, "true");
    assert_clean(&page, &member);
}

/// Relative luminance and contrast by WCAG 2.1; gives the texts that are hard to read.
const HARD_TO_READ: &str = "(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((channels(color)[3] ?? 1) === 1) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const texts = [...document.querySelectorAll('body *')].filter((node) =>
    [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()) && node.getClientRects().length > 0 && !node.closest('svg'));
  return texts.map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), node.textContent];
  }).filter(([contrast]) => contrast < 4.5);
})()";

#[tokio::test(flavor = "multi_thread")]
async fn narrow_and_dark_screens_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console"]);
    let mut client = kv(&member).await;
    put(&mut client, format!("/long/{}", "k".repeat(300)), "v".repeat(3000)).await;
    let mut page = Page::open(&console(&member)).await;
    let ground = "getComputedStyle(document.documentElement).backgroundColor";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        page.color_scheme(scheme).await;
        grounds.push(page.evaluate(ground).await);
        for width in [320, 420, 800, 1240] {
            page.size(width, 800).await;
            for view in VIEWS {
                page.evaluate(&format!("location.hash = '#/{view}'")).await;
                let heading = format!("document.querySelector('h1')?.textContent.toLowerCase() === '{view}'");
                page.wait_for(&format!("{heading} && document.querySelector('main table, .events, .facts')")).await;
                let over = "document.documentElement.scrollWidth - innerWidth";
                assert_eq!(page.evaluate(over).await, 0, "{view} at {width} scrolls sideways");
                let hard = page.evaluate(HARD_TO_READ).await;
                assert_eq!(hard, serde_json::json!([]), "{view}, {scheme}");
            }
        }
    }
    assert_ne!(grounds[0], grounds[1], "dark is dark");
    page.color_scheme("light").await;
    page.size(390, 800).await;
    page.evaluate("location.hash = '#/cluster'").await;
    page.wait_for("document.querySelectorAll('.plot path[d^=M]').length >= 2").await;
    screenshot(&mut page, "narrow.png").await;
    assert_clean(&page, &member);
}

async fn turn_auth_on(member: &Member) {
    let mut auth = AuthClient::connect(member.endpoint()).await.unwrap();
    for name in ["root", "reader"] {
        let user = AuthUserAddRequest { name: name.into(), password: "secret".into(), ..Default::default() };
        auth.user_add(user).await.unwrap();
        auth.role_add(AuthRoleAddRequest { name: name.into() }).await.unwrap();
        auth.user_grant_role(AuthUserGrantRoleRequest { user: name.into(), role: name.into() }).await.unwrap();
    }
    let perm = proto::authpb::Permission { perm_type: 0, key: "/a/".into(), range_end: "/a0".into() };
    let grant = AuthRoleGrantPermissionRequest { name: "reader".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await.unwrap();
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

async fn log_in(page: &mut Page, user: &str, password: &str) {
    page.wait_for("document.querySelector('input[name=user]')").await;
    page.evaluate("document.querySelector('input[name=user]').select()").await;
    page.write(user).await;
    page.press("Tab").await;
    page.evaluate("document.activeElement.select()").await;
    page.write(password).await;
    page.press("Enter").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_in_sees_what_their_roles_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--console", "--bcrypt-cost=4"]);
    let mut client = kv(&member).await;
    put(&mut client, "/a/mine", "1").await;
    put(&mut client, "/b/theirs", "2").await;
    turn_auth_on(&member).await;
    let mut page = Page::open(&console(&member)).await;
    log_in(&mut page, "reader", "wrong").await;
    page.wait_for_text("authentication failed").await;
    assert!(!page.evaluate("document.body.innerText").await.as_str().unwrap().contains("Members"));
    log_in(&mut page, "reader", "secret").await;
    page.wait_for_text("Members").await;
    for view in ["keys", "sizes"] {
        page.evaluate(&format!("location.hash = '#/{view}'")).await;
        page.wait_for_text("permission denied").await;
        page.wait_for_text("What your roles may read").await;
        page.evaluate("document.querySelector('.choices a').click()").await;
        page.wait_for_text("/a/mine").await;
    }
    for view in ["key", "watch"] {
        page.evaluate(&at(view, "/b/theirs")).await;
        page.wait_for_text("permission denied").await;
    }
    let stored = "localStorage.length + sessionStorage.length + document.cookie.length";
    assert_eq!(page.evaluate(stored).await, 0, "the token is in the page's memory only");
    page.evaluate("document.querySelector('#user button').click()").await;
    page.wait_for("document.querySelector('input[name=password]')").await;
    log_in(&mut page, "root", "secret").await;
    page.evaluate("location.hash = '#/keys'").await;
    page.wait_for_text("/b/theirs").await;
    // Refusals are told in the browser's own words, too; nothing else is.
    page.complaints
        .retain(|complaint| !complaint.contains("Failed to load resource: the server responded with a status of 40"));
    assert_clean(&page, &member);
}
