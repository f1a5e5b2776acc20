// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// threadTime returns the CPU time that this thread has used. Unlike a clock, it does not
// depend on what else runs on the machine.
func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	const thread = 1 // RUSAGE_THREAD in the kernel's include/uapi/linux/resource.h
	if err := syscall.Getrusage(thread, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// work returns the CPU time of f, the lowest of a few runs.
func work(t *testing.T, f func()) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	least := time.Duration(1<<63 - 1)
	for range 4 {
		before := threadTime(t)
		f()
		least = min(least, threadTime(t)-before)
	}
	return least
}

// TestHostileRecordsCostTheirNumber checks that the work grows in proportion to the
// number of made-up records, whatever they contain: eight times as many records cost
// about eight times as much, not sixty-four times. In each case the records conflict with
// each other in one way.
func TestHostileRecordsCostTheirNumber(t *testing.T) {
	for name, change := range map[string]func(*mesh.Record, int){
		"one location, the same internal IPs": func(r *mesh.Record, _ int) {
			r.Location, r.InternalIPs = "aws", prefixes("192.168.1.1/24", "192.168.1.2/24", "192.168.1.3/24", "192.168.1.4/24")
		},
		"one location, networks without end": func(r *mesh.Record, i int) {
			r.Location = "aws"
			r.InternalIPs = append(r.InternalIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 6), byte(i << 2), 1}), 30))
			r.AllowedLocationIPs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{30, byte(i >> 8), byte(i), 0}), 24)}
		},
		"alone, networks without end": func(r *mesh.Record, i int) {
			r.AllowedLocationIPs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{30, byte(i >> 8), byte(i), 0}), 24)}
		},
		"half of them behind NAT": func(r *mesh.Record, i int) {
			if i%2 == 0 {
				r.NAT, r.Endpoints, r.InternalIPs = true, nil, nil
			}
		},
		"one name, slot and key": func(r *mesh.Record, _ int) {
			one := record(1)
			r.Name, r.Claim.Slot, r.Key = one.Name, one.Claim.Slot, one.Key
		},
	} {
		for _, mode := range []mesh.Mode{mesh.ModeFull, mesh.ModeLocation} {
			t.Run(fmt.Sprintf("%s, mode %s", name, mode), func(t *testing.T) {
				input := func(n int) mesh.Input {
					in := clusterOf(n)
					in.Cluster.Mode, in.Cluster.Encapsulation = mode, mesh.EncapsulationAlways
					for i := range in.Records {
						if r := &in.Records[i]; i > 0 || r.Location == "" {
							change(r, i)
							r.Identify()
						}
					}
					for i := range 32 {
						c := client(in.Records[0], i)
						c.Access[i%len(c.Access)].Protocol, c.Access[i%len(c.Access)].Port = "tcp", uint16(i%8+1)
						in.Clients = append(in.Clients, c)
					}
					return in
				}
				cost := func(n int) time.Duration {
					in := input(n)
					return work(t, func() {
						mesh.Derive(in)
						mesh.ClientConfigOf(in, in.Clients[0], nil)
					})
				}
				const few, many = 1000, 8000
				a, b := cost(few), cost(many)
				t.Logf("%d: %v, %d: %v", few, a, many, b)
				// The clock of a process advances in steps, some of them longer than the small case.
				if most := 32 * max(a, 5*time.Millisecond); b > most {
					t.Errorf("%d records cost %v, and %d cost %v: %.0f times as much", few, a, many, b, float64(b)/float64(a))
				}
			})
		}
	}
}
