// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package relaynft

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/path/forward"
)

// kernelRate returns the limit that the kernel has.
func kernelRate(t *testing.T) uint64 {
	t.Helper()
	found := regexp.MustCompile(`limit rate over (\d+) (k|m|)bytes/second`).FindStringSubmatch(ownTable(t))
	if found == nil {
		return 0
	}
	n, err := strconv.ParseUint(found[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * map[string]uint64{"": 1, "k": 1 << 10, "m": 1 << 20}[found[2]]
}

// TestLimit has a host send more than the relay may forward. What arrives is within the kernel's part of
// the limit, and both parts together are the limit.
func TestLimit(t *testing.T) {
	if !namespaced(t) {
		return
	}
	const limit = 800_000
	b := newBed(t, plain, plain)
	b.relay.set(b.bound(long())...)
	b.forward(t, limit)
	b.forwards(t, atPeer)
	began, sent := time.Now(), 0
	var received int
	var reading sync.WaitGroup
	to := b.hosts[1].conns[true]
	if err := to.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	reading.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, err := to.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			received += n
		}
	})
	packet := data(index(b.hosts[0], true), 1000)
	for time.Since(began) < 5*time.Second {
		b.write(t, 0, true, packet)
		sent += len(packet)
		time.Sleep(500 * time.Microsecond)
	}
	reading.Wait()
	took := time.Since(began)
	allowed := float64(limit)*took.Seconds() + 2*float64(forward.Burst(limit))
	if float64(received) > allowed {
		t.Errorf("%d bytes of %d arrived within %v, want at most %.0f", received, sent, took, allowed)
	}
	if received == 0 {
		t.Error("nothing has arrived")
	}
	if sent > int(2*allowed) {
		eventually(t, "what was dropped is counted", func() bool { return b.forwarder.Counts().Limited > 0 })
	}
	eventually(t, "both parts are the limit", func() bool { return kernelRate(t)+b.relay.Rate() == limit })

	// Nothing is forwarded in the kernel: user space may have all of it.
	b.stop()
	if _, err := Remove(); err != nil {
		t.Fatal(err)
	}
	b.relay.set()
	b.forward(t, limit)
	eventually(t, "user space has all of it", func() bool { return b.relay.Rate() == limit })
}
