// A scenario of the Go client (clientv3 and its concurrency package), run while the cluster's leader is killed.
//
// Usage: go ENDPOINTS CA CERT KEY PREFIX SECONDS. Each step prints one JSON line. "load" says that the long part has
// begun. A violation ends the program with exit code 1 and says what it was.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// requestTimeout bounds one try; between two tries the cluster may elect a leader.
const requestTimeout = 5 * time.Second

func main() {
	if len(os.Args) != 7 {
		violation("usage: ENDPOINTS CA CERT KEY PREFIX SECONDS")
	}
	seconds, err := strconv.Atoi(os.Args[6])
	must("SECONDS", err)
	info := transport.TLSInfo{TrustedCAFile: os.Args[2], CertFile: os.Args[3], KeyFile: os.Args[4]}
	tls, err := info.ClientConfig()
	must("TLS", err)
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   strings.Split(os.Args[1], ","),
		DialTimeout: requestTimeout,
		TLS:         tls,
	})
	must("connect", err)
	defer client.Close()
	prefix := os.Args[5]

	puts(client, prefix+"put/")
	transactions(client, prefix+"txn/")
	leases(client, prefix+"lease/")
	load(client, prefix, time.Duration(seconds)*time.Second)
	elections(client, prefix+"election/")
	step("done", nil)
}

func step(name string, facts map[string]any) {
	line := map[string]any{"step": name}
	for key, value := range facts {
		line[key] = value
	}
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

func violation(format string, args ...any) {
	step("violation", map[string]any{"what": fmt.Sprintf(format, args...)})
	os.Exit(1)
}

func must(what string, err error) {
	if err != nil {
		violation("%s: %v", what, err)
	}
}

func timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), requestTimeout)
}

func puts(client *clientv3.Client, prefix string) {
	ctx, cancel := timeout()
	defer cancel()
	var last int64
	for i := range 100 {
		put, err := client.Put(ctx, fmt.Sprintf("%s%03d", prefix, i), strconv.Itoa(i))
		must("put", err)
		if put.Header.Revision <= last {
			violation("revision %d follows %d", put.Header.Revision, last)
		}
		last = put.Header.Revision
	}
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
	must("get", err)
	if got.Count != 100 || string(got.Kvs[0].Value) != "99" {
		violation("100 puts gave %d keys, the last of them %v", got.Count, got.Kvs[0])
	}
	deleted, err := client.Delete(ctx, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV())
	must("delete", err)
	if deleted.Deleted != 100 || len(deleted.PrevKvs) != 100 {
		violation("deleted %d of 100", deleted.Deleted)
	}
	step("puts", nil)
}

func transactions(client *clientv3.Client, prefix string) {
	ctx, cancel := timeout()
	defer cancel()
	create := func() bool {
		txn, err := client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(prefix+"a"), "=", 0)).
			Then(clientv3.OpPut(prefix+"a", "1"), clientv3.OpPut(prefix+"b", "1")).
			Else(clientv3.OpGet(prefix+"a"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(prefix+"c", "else")}, nil)).
			Commit()
		must("txn", err)
		return txn.Succeeded
	}
	if !create() || create() {
		violation("a key was created twice")
	}
	moved, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		stm.Put(prefix+"b", stm.Get(prefix+"a")+stm.Get(prefix+"c"))
		return nil
	})
	must("stm", err)
	if !moved.Succeeded {
		violation("the software transaction did not commit")
	}
	got, err := client.Get(ctx, prefix+"b")
	must("get", err)
	if string(got.Kvs[0].Value) != "1else" {
		violation("the software transaction wrote %q", got.Kvs[0].Value)
	}
	step("txns", nil)
}

func leases(client *clientv3.Client, prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	short, err := client.Grant(ctx, 2)
	must("grant", err)
	put, err := client.Put(ctx, prefix+"short", "gone soon", clientv3.WithLease(short.ID))
	must("put", err)
	granted := time.Now()
	for event := range client.Watch(ctx, prefix+"short", clientv3.WithRev(put.Header.Revision+1)) {
		must("watch", event.Err())
		if event.Events[0].Type != clientv3.EventTypeDelete {
			violation("an expired lease gave %v", event.Events[0])
		}
		break
	}
	must("the lease's end", ctx.Err())
	if lived := time.Since(granted); lived < 2*time.Second-100*time.Millisecond {
		violation("a lease of 2 s lived for %v", lived)
	}
	step("leases", nil)
}

// load writes, watches, locks and keeps a lease alive, all at once, while the leader dies.
func load(client *clientv3.Client, prefix string, length time.Duration) {
	ctx, cancel := timeout()
	kept, err := client.Grant(ctx, 15)
	must("grant", err)
	_, err = client.Put(ctx, prefix+"kept", "alive", clientv3.WithLease(kept.ID))
	must("put", err)
	cancel()
	alive, stopKeeping := context.WithCancel(context.Background())
	answers, err := client.KeepAlive(alive, kept.ID)
	must("keep alive", err)
	go func() {
		for range answers {
		}
	}()

	step("load", nil)
	end := time.Now().Add(length)
	var group sync.WaitGroup
	var writes, events, counted int
	group.Go(func() { writes, events = watched(client, prefix+"watched/", end) })
	group.Go(func() { counted = locked(client, prefix+"locked/", end) })
	group.Wait()

	ctx, cancel = timeout()
	defer cancel()
	got, err := client.Get(ctx, prefix+"kept")
	must("get", err)
	if got.Count != 1 {
		violation("a lease that was kept alive is gone")
	}
	stopKeeping()
	_, err = client.Revoke(ctx, kept.ID)
	must("revoke", err)
	step("loaded", map[string]any{"writes": writes, "events": events, "locked": counted})
}

// watched writes one key after the other and gives how many writes were acknowledged and how many events came.
func watched(client *clientv3.Client, prefix string, end time.Time) (int, int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	start, err := client.Get(ctx, prefix)
	must("get", err)
	seen := make(chan struct {
		key      string
		revision int64
	}, 1<<20)
	go func() {
		defer close(seen)
		for response := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(start.Header.Revision+1)) {
			must("watch", response.Err())
			for _, event := range response.Events {
				seen <- struct {
					key      string
					revision int64
				}{string(event.Kv.Key), event.Kv.ModRevision}
			}
		}
	}()
	acknowledged := map[string]int64{}
	for i := 0; time.Now().Before(end); i++ {
		key := fmt.Sprintf("%s%06d", prefix, i)
		for acknowledged[key] == 0 {
			try, cancelTry := timeout()
			// A try whose fate is unknown may have written: then the key has two events.
			if put, err := client.Put(try, key, "v"); err == nil {
				acknowledged[key] = put.Header.Revision
			}
			cancelTry()
			if time.Now().After(end.Add(time.Minute)) {
				violation("no write has succeeded for a minute")
			}
		}
	}
	try, cancelTry := timeout()
	defer cancelTry()
	last, err := client.Put(try, prefix+"end", "v")
	must("the last put", err)
	writes, events, before := len(acknowledged), 0, int64(0)
	late := time.After(30 * time.Second)
	for before < last.Header.Revision {
		select {
		case event := <-seen:
			if event.revision <= before {
				violation("an event of revision %d follows one of %d", event.revision, before)
			}
			before = event.revision
			events++
			if acknowledged[event.key] == event.revision {
				delete(acknowledged, event.key)
			}
		case <-late:
			violation("the watch stands at revision %d, and the last write was %d", before, last.Header.Revision)
		}
	}
	if len(acknowledged) != 0 {
		violation("the watch missed %d acknowledged writes", len(acknowledged))
	}
	return writes, events
}

// locked lets two sessions count under one mutex. What is written is guarded by the lock's own key, as it must be:
// a lock alone promises nothing once its lease is gone.
func locked(client *clientv3.Client, prefix string, end time.Time) int {
	var group sync.WaitGroup
	var total sync.Mutex
	sum := 0
	for range 2 {
		group.Go(func() {
			added := 0
			for time.Now().Before(end) {
				if count(client, prefix) {
					added++
				}
			}
			total.Lock()
			defer total.Unlock()
			sum += added
		})
	}
	group.Wait()
	ctx, cancel := timeout()
	defer cancel()
	got, err := client.Get(ctx, prefix+"count")
	must("get", err)
	if got.Count == 0 {
		violation("nothing was counted under the lock")
	}
	stored, err := strconv.Atoi(string(got.Kvs[0].Value))
	must("the count", err)
	// An increment whose answer was lost may have happened.
	if stored < sum {
		violation("%d increments were acknowledged, and the count is %d", sum, stored)
	}
	return sum
}

// count adds one under the lock and says whether that was acknowledged.
func count(client *clientv3.Client, prefix string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 3*requestTimeout)
	defer cancel()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(5), concurrency.WithContext(ctx))
	if err != nil {
		return false
	}
	defer session.Close()
	mutex := concurrency.NewMutex(session, prefix+"mutex")
	if mutex.Lock(ctx) != nil {
		return false
	}
	defer func() {
		free, cancelFree := timeout()
		defer cancelFree()
		// If this fails the lease's end frees the lock.
		_ = mutex.Unlock(free)
	}()
	got, err := client.Get(ctx, prefix+"count")
	if err != nil {
		return false
	}
	value := 0
	if got.Count == 1 {
		value, err = strconv.Atoi(string(got.Kvs[0].Value))
		must("the count", err)
	}
	txn, err := client.Txn(ctx).If(mutex.IsOwner()).Then(clientv3.OpPut(prefix+"count", strconv.Itoa(value+1))).Commit()
	return err == nil && txn.Succeeded
}

func elections(client *clientv3.Client, prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	candidate := func() *concurrency.Election {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
		must("session", err)
		return concurrency.NewElection(session, prefix)
	}
	first, second := candidate(), candidate()
	must("campaign", first.Campaign(ctx, "first"))
	won := make(chan error, 1)
	go func() { won <- second.Campaign(ctx, "second") }()
	leader, err := first.Leader(ctx)
	must("leader", err)
	if string(leader.Kvs[0].Value) != "first" {
		violation("%q leads", leader.Kvs[0].Value)
	}
	must("proclaim", first.Proclaim(ctx, "still first"))
	observed := first.Observe(ctx)
	if now := <-observed; string(now.Kvs[0].Value) != "still first" {
		violation("observed %q", now.Kvs[0].Value)
	}
	must("resign", first.Resign(ctx))
	must("second campaign", <-won)
	if next := <-observed; string(next.Kvs[0].Value) != "second" {
		violation("observed %q after the first resigned", next.Kvs[0].Value)
	}
	must("second resign", second.Resign(ctx))
	step("elections", nil)
}
