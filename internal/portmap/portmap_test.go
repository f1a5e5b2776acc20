// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// saver keeps what is saved.
type saver struct {
	mu  sync.Mutex
	all []Mapping
	err error
}

func (s *saver) save(all []Mapping) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.Clone(all)
	return s.err
}

func (s *saver) saved() []Mapping {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// start starts a mapper until the returned function is called.
func startMapper(t *testing.T, s *saver) (*Mapper, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := Start(ctx, Options{Known: s.saved(), Save: s.save, Random: random(), Logger: slog.New(slog.DiscardHandler)})
	end := func() {
		cancel()
		m.Wait()
	}
	t.Cleanup(end)
	return m, end
}

// await waits for a condition each time that something changes.
func await(t *testing.T, m *Mapper, what string, ok func([]Mapping) bool) {
	t.Helper()
	for limit := time.After(time.Minute); !ok(m.Mappings()); {
		select {
		case <-m.Changed():
		case <-limit:
			t.Fatalf("%s: got %v", what, m.Mappings())
		}
	}
}

func TestMapper(t *testing.T) {
	at, s := newAddr(), &saver{err: errors.New("disk full")}
	var restarts, removals atomic.Uint32
	began := time.Now()
	serveUDP(t, at, pcpPort, func(b []byte) [][]byte {
		epoch, external := uint32(1000+time.Since(began)/time.Second), netip.MustParseAddrPort("203.0.113.9:40001")
		if restarts.Load() > 0 { // without its former mappings
			epoch, external = uint32(time.Since(began)/time.Second), netip.MustParseAddrPort("203.0.113.10:40002")
		}
		if b[1] == pcpMap && b[7] == 0 && b[6] == 0 {
			removals.Add(1)
		}
		return [][]byte{pcpReply(b, 0, 7200, epoch, external)}
	})
	m, end := startMapper(t, s)
	isAt := func(external string) func([]Mapping) bool {
		return func(all []Mapping) bool { return len(all) == 1 && all[0].External.String() == external }
	}
	wanted := Target{Gateway: at, Source: loopback, Ports: []uint16{51820}}
	m.Want(wanted)
	await(t, m, "first mapping", isAt("203.0.113.9:40001"))
	if got := s.saved(); !isAt("203.0.113.9:40001")(got) {
		t.Errorf("saved %v", got)
	}

	// The router starts anew and says so; others that say so have nobody asked.
	restarts.Add(1)
	announce(t, newAddr())
	announce(t, at)
	await(t, m, "mapping after the restart", isAt("203.0.113.10:40002"))

	end() // and the mapping stays
	if removals.Load() != 0 {
		t.Error("a mapping was removed at the end")
	}
	m, _ = startMapper(t, s)
	if got := m.Mappings(); !isAt("203.0.113.10:40002")(got) {
		t.Errorf("after the start: got %v, want what there was", got)
	}
	m.Want(wanted)
	nonce := s.saved()[0].Nonce
	m.Want(Target{})
	await(t, m, "no mapping", func(all []Mapping) bool { return len(all) == 0 })
	for limit := time.Now().Add(time.Minute); removals.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the mapping was not removed")
		}
	}
	if nonce == [12]byte{} {
		t.Error("no nonce was kept")
	}
}

// announce says that a router has started anew.
func announce(t *testing.T, from netip.Addr) {
	t.Helper()
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 5350)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0, 128, 0, 0}); err != nil {
		t.Fatal(err)
	}
}

func TestRemove(t *testing.T) {
	d := newIGD(t, &igd{entries: map[string]string{"51820": "127.0.0.1"}})
	dead := newAddr()
	internal := netip.AddrPortFrom(loopback, 51820)
	ours := Mapping{Protocol: UPnP, Gateway: d.at, Internal: internal, External: netip.MustParseAddrPort("203.0.113.9:51820"), Permanent: true}
	ends := Mapping{Protocol: PCP, Gateway: dead, Internal: internal, External: netip.MustParseAddrPort("203.0.113.9:51820")}
	removed, err := Remove(t.Context(), []Mapping{ours, ends, {Protocol: "IGD 3"}})
	if diff := cmp.Diff([]Mapping{ours}, removed, addrs); err != nil || diff != "" {
		t.Errorf("got %v, removed (-want +got):\n%s", err, diff)
	}
	if d.entries["51820"] != "" {
		t.Error("the router still has the mapping")
	}
	stays := ends
	stays.Permanent = true
	if _, err := Remove(t.Context(), []Mapping{stays}); err == nil {
		t.Error("got no error for a mapping that stays for ever")
	}
}
