import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.election.LeaderKey;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import io.grpc.netty.GrpcSslContexts;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Supplier;

/**
 * A scenario of the Java client jetcd, run while the cluster's leader is killed. Its locks and elections are the
 * server's.
 *
 * <p>Usage: Scenario ENDPOINTS CA CERT KEY PREFIX SECONDS. Each step prints one JSON line. "load" says that the long
 * part has begun. A violation ends the program with exit code 1 and says what it was.
 */
public final class Scenario {
  /** Seconds that bound one try; between two tries the cluster may elect a leader. */
  private static final int REQUEST = 5;

  private static final int MINUTE = 60;

  private final Client client;
  private final String prefix;

  private Scenario(Client client, String prefix) {
    this.client = client;
    this.prefix = prefix;
  }

  public static void main(String[] arguments) {
    try {
      if (arguments.length != 6) {
        throw new Violation("usage: ENDPOINTS CA CERT KEY PREFIX SECONDS");
      }
      var tls = GrpcSslContexts.forClient()
          .trustManager(new File(arguments[1]))
          .keyManager(new File(arguments[2]), new File(arguments[3]))
          .build();
      var client = Client.builder()
          .endpoints(arguments[0].split(","))
          .sslContext(tls)
          .connectTimeout(Duration.ofSeconds(REQUEST))
          .build();
      var scenario = new Scenario(client, arguments[4]);
      scenario.puts();
      scenario.transactions();
      scenario.leases();
      scenario.load(Integer.parseInt(arguments[5]));
      scenario.elections();
      step("done", "");
      System.exit(0);
    } catch (Throwable violation) {
      violation.printStackTrace();
      step("violation", ",\"what\":\"" + violation.toString().replaceAll("[^ -~]|[\"\\\\]", "'") + "\"");
      System.exit(1);
    }
  }

  private static final class Violation extends RuntimeException {
    Violation(String what) {
      super(what);
    }
  }

  private static void ensure(boolean holds, String what) {
    if (!holds) {
      throw new Violation(what);
    }
  }

  private static synchronized void step(String name, String facts) {
    System.out.println("{\"step\":\"" + name + "\"" + facts + "}");
  }

  private static ByteSequence bytes(String text) {
    return ByteSequence.from(text, StandardCharsets.UTF_8);
  }

  private static String text(ByteSequence bytes) {
    return bytes.toString(StandardCharsets.UTF_8);
  }

  private ByteSequence key(String name) {
    return bytes(prefix + name);
  }

  private static <T> T once(CompletableFuture<T> answer) throws Exception {
    return answer.get(REQUEST, TimeUnit.SECONDS);
  }

  /** Repeats what may be repeated. */
  private static <T> T again(String what, Supplier<CompletableFuture<T>> request) throws Exception {
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(MINUTE);
    while (true) {
      try {
        return once(request.get());
      } catch (ExecutionException | TimeoutException error) {
        ensure(System.nanoTime() < end, what + ": " + error);
      }
    }
  }

  private void puts() throws Exception {
    long last = 0;
    for (int i = 0; i < 100; i++) {
      var put = once(client.getKVClient().put(key("put/" + String.format("%03d", i)), bytes("" + i)));
      long revision = put.getHeader().getRevision();
      ensure(revision > last, "revision " + revision + " follows " + last);
      last = revision;
    }
    var sorted = GetOption.builder()
        .isPrefix(true)
        .withSortField(GetOption.SortTarget.KEY)
        .withSortOrder(GetOption.SortOrder.DESCEND)
        .build();
    var got = once(client.getKVClient().get(key("put/"), sorted));
    ensure(got.getCount() == 100 && text(got.getKvs().get(0).getValue()).equals("99"), "100 puts gave " + got.getCount());
    var all = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
    var deleted = once(client.getKVClient().delete(key("put/"), all));
    ensure(deleted.getDeleted() == 100 && deleted.getPrevKvs().size() == 100, "deleted " + deleted.getDeleted());
    step("puts", "");
  }

  private TxnResponse create() throws Exception {
    return once(client.getKVClient().txn()
        .If(new Cmp(key("txn/a"), Cmp.Op.EQUAL, CmpTarget.createRevision(0)))
        .Then(Op.put(key("txn/a"), bytes("1"), PutOption.DEFAULT), Op.put(key("txn/b"), bytes("1"), PutOption.DEFAULT))
        .Else(
            Op.get(key("txn/a"), GetOption.DEFAULT),
            Op.txn(new Cmp[0], new Op[] {Op.put(key("txn/b"), bytes("2"), PutOption.DEFAULT)}, new Op[0]))
        .commit());
  }

  private void transactions() throws Exception {
    ensure(create().isSucceeded(), "a key that is not there was not created");
    ensure(!create().isSucceeded(), "a key was created twice");
    var b = once(client.getKVClient().get(key("txn/b")));
    ensure(text(b.getKvs().get(0).getValue()).equals("2"), "the nested transaction had no effect");
    step("txns", "");
  }

  private void leases() throws Exception {
    long lease = once(client.getLeaseClient().grant(2)).getID();
    var events = new LinkedBlockingQueue<WatchEvent>();
    var put = once(client.getKVClient()
        .put(key("lease/short"), bytes("gone soon"), PutOption.builder().withLeaseId(lease).build()));
    long granted = System.nanoTime();
    var behind = WatchOption.builder().withRevision(put.getHeader().getRevision() + 1).build();
    try (var watch = client.getWatchClient().watch(key("lease/short"), behind, r -> events.addAll(r.getEvents()))) {
      var event = events.poll(4 * REQUEST, TimeUnit.SECONDS);
      ensure(event != null && event.getEventType() == WatchEvent.EventType.DELETE, "an expired lease gave " + event);
    }
    long lived = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - granted);
    ensure(lived > 1900, "a lease of 2 s lived for " + lived + " ms");
    step("leases", "");
  }

  /** Writes, watches, locks and keeps a lease alive, all at once, while the leader dies. */
  private void load(int seconds) throws Exception {
    long lease = once(client.getLeaseClient().grant(15)).getID();
    once(client.getKVClient().put(key("kept"), bytes("alive"), PutOption.builder().withLeaseId(lease).build()));
    var keeper = client.getLeaseClient().keepAlive(lease, new StreamObserver<LeaseKeepAliveResponse>() {
      @Override
      public void onNext(LeaseKeepAliveResponse answer) {}

      @Override
      public void onError(Throwable error) {
        // Whether the lease has ended is looked at below.
        error.printStackTrace();
      }

      @Override
      public void onCompleted() {}
    });
    step("load", "");
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
    var written = CompletableFuture.supplyAsync(() -> run(() -> watched(end)));
    var one = CompletableFuture.supplyAsync(() -> run(() -> locked(end)));
    var other = CompletableFuture.supplyAsync(() -> run(() -> locked(end)));
    long limit = seconds + 2L * MINUTE;
    long[] writes = written.get(limit, TimeUnit.SECONDS);
    long added = one.get(limit, TimeUnit.SECONDS) + other.get(limit, TimeUnit.SECONDS);
    var kept = again("get", () -> client.getKVClient().get(key("kept")));
    ensure(kept.getCount() == 1, "a lease that was kept alive is gone");
    keeper.close();
    var count = again("get", () -> client.getKVClient().get(key("locked/count")));
    long stored = count.getKvs().isEmpty() ? 0 : Long.parseLong(text(count.getKvs().get(0).getValue()));
    // An increment whose answer was lost may have happened.
    ensure(0 < added && added <= stored, added + " increments were acknowledged, and the count is " + stored);
    step("loaded", ",\"writes\":" + writes[0] + ",\"events\":" + writes[1] + ",\"locked\":" + added);
  }

  private interface Work<T> {
    T run() throws Exception;
  }

  private static <T> T run(Work<T> work) {
    try {
      return work.run();
    } catch (RuntimeException error) {
      throw error;
    } catch (Exception error) {
      throw new RuntimeException(error);
    }
  }

  /** Writes one key after the other; gives how many writes were acknowledged and how many events came. */
  private long[] watched(long end) throws Exception {
    BlockingQueue<KeyValue> events = new LinkedBlockingQueue<>();
    GetResponse now = again("get", () -> client.getKVClient().get(key("watched/")));
    var option = WatchOption.builder().isPrefix(true).withRevision(now.getHeader().getRevision() + 1).build();
    Map<Long, String> acknowledged = new TreeMap<>();
    long last = 0;
    try (Watch.Watcher watch = client.getWatchClient().watch(
        key("watched/"), option, response -> response.getEvents().forEach(event -> events.add(event.getKeyValue())))) {
      for (int i = 0; System.nanoTime() < end; i++) {
        // A try whose fate is unknown may have written: then the key has two events.
        ByteSequence key = key("watched/" + String.format("%06d", i));
        var put = again("put", () -> client.getKVClient().put(key, bytes("v")));
        last = put.getHeader().getRevision();
        acknowledged.put(last, text(key));
      }
      long writes = acknowledged.size();
      long seen = 0;
      long newest = 0;
      while (newest < last) {
        KeyValue event = events.poll(6 * REQUEST, TimeUnit.SECONDS);
        ensure(event != null, "the watch stands at " + newest + ", and the last write was " + last);
        ensure(event.getModRevision() > newest, "an event of revision " + event.getModRevision() + " follows " + newest);
        newest = event.getModRevision();
        seen++;
        acknowledged.remove(newest, text(event.getKey()));
      }
      ensure(acknowledged.isEmpty(), "the watch missed " + acknowledged.size() + " acknowledged writes");
      return new long[] {writes, seen};
    }
  }

  private long locked(long end) throws Exception {
    long added = 0;
    while (System.nanoTime() < end) {
      try {
        added += count() ? 1 : 0;
      } catch (ExecutionException | TimeoutException error) {
        // A member is down; what was tried is not counted as acknowledged.
      }
    }
    return added;
  }

  /**
   * Adds one under the lock. What is written is guarded by the lock's own key: a lock alone promises nothing once its
   * lease is gone.
   */
  private boolean count() throws Exception {
    long lease = once(client.getLeaseClient().grant(5)).getID();
    ByteSequence lock = once(client.getLockClient().lock(key("locked/mutex"), lease)).getKey();
    var now = once(client.getKVClient().get(key("locked/count")));
    long value = now.getKvs().isEmpty() ? 0 : Long.parseLong(text(now.getKvs().get(0).getValue()));
    var added = once(client.getKVClient().txn()
        .If(new Cmp(lock, Cmp.Op.GREATER, CmpTarget.createRevision(0)))
        .Then(Op.put(key("locked/count"), bytes("" + (value + 1)), PutOption.DEFAULT))
        .commit());
    once(client.getLockClient().unlock(lock));
    once(client.getLeaseClient().revoke(lease));
    return added.isSucceeded();
  }

  private LeaderKey campaign(String value) throws Exception {
    long lease = again("grant", () -> client.getLeaseClient().grant(30)).getID();
    // Asked again, a candidate that leads already leads still.
    return again("campaign", () -> client.getElectionClient().campaign(key("election"), lease, bytes(value))).getLeader();
  }

  private void elections() throws Exception {
    LeaderKey first = campaign("first");
    var leads = again("leader", () -> client.getElectionClient().leader(key("election")));
    ensure(text(leads.getKv().getValue()).equals("first"), text(leads.getKv().getValue()) + " leads");
    var second = CompletableFuture.supplyAsync(() -> run(() -> campaign("second")));
    again("proclaim", () -> client.getElectionClient().proclaim(first, bytes("still first")));
    var observed = new LinkedBlockingQueue<String>();
    client.getElectionClient().observe(key("election"), new Election.Listener() {
      @Override
      public void onNext(LeaderResponse response) {
        observed.add(text(response.getKv().getValue()));
      }

      @Override
      public void onError(Throwable error) {
        observed.add("an error: " + error);
      }

      @Override
      public void onCompleted() {
        observed.add("an end");
      }
    });
    String seen = observed.poll(REQUEST, TimeUnit.SECONDS);
    ensure("still first".equals(seen), "observed " + seen);
    again("resign", () -> client.getElectionClient().resign(first));
    LeaderKey leader = second.get(MINUTE, TimeUnit.SECONDS);
    seen = observed.poll(REQUEST, TimeUnit.SECONDS);
    ensure("second".equals(seen), "observed " + seen + " after the first resigned");
    again("resign", () -> client.getElectionClient().resign(leader));
    step("elections", "");
  }
}
