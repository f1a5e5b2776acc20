// SPDX-License-Identifier: Apache-2.0

package udpbatch

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// patience is how long a test waits for something.
const patience = 2 * time.Minute

func listen(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// lengths are those of the datagrams of one place, in their order.
func datagrams(lengths ...int) [][]byte {
	var all [][]byte
	for i, n := range lengths {
		all = append(all, bytes.Repeat([]byte{byte(i + 1)}, n))
	}
	return all
}

func repeat(length, count int) []int {
	var all []int
	for range count {
		all = append(all, length)
	}
	return all
}

// counter counts messages, and refuses merged ones if it is to.
type counter struct {
	*ipv4.PacketConn
	refuses  bool
	messages int
}

func (c *counter) WriteBatch(all []ipv6.Message, flags int) (int, error) {
	for i, m := range all {
		if c.refuses && len(m.Buffers) > 1 {
			if i == 0 {
				return 0, errors.New("not merged")
			}
			all = all[:i]
			break
		}
	}
	n, err := c.PacketConn.WriteBatch(all, flags)
	c.messages += n
	return n, err
}

// TestSend has datagrams arrive as they were added, whatever becomes one message.
func TestSend(t *testing.T) {
	for name, test := range map[string]struct {
		lengths  []int
		apart    bool
		refuses  bool
		messages int
	}{
		"one":                      {lengths: []int{9}, messages: 1},
		"of one length":            {lengths: repeat(1452, 20), messages: 1},
		"the last one is shorter":  {lengths: []int{1452, 1452, 96}, messages: 1},
		"more after a shorter one": {lengths: []int{1452, 96, 1452}, messages: 2},
		"longer ones":              {lengths: []int{96, 1452, 1452}, messages: 2},
		"more than may be in one":  {lengths: repeat(32, maxSegments+1), messages: 2},
		"longer than one may be":   {lengths: repeat(2000, maxBytes/2000+1), messages: 2},
		"not to be merged":         {lengths: repeat(1452, 5), apart: true, messages: 5},
		"the kernel refuses to":    {lengths: repeat(1452, 5), refuses: true, messages: 5},
		"it refuses some of them":  {lengths: []int{96, 1452, 1452, 1500}, refuses: true, messages: 4},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := listen(t), listen(t)
			w := &counter{PacketConn: ipv4.NewPacketConn(from), refuses: test.refuses}
			if !CanMerge(from) {
				t.Skip("this kernel is too old")
			}
			want := datagrams(test.lengths...)
			var b Batch
			for range 2 { // a batch may be used again
				w.messages = 0
				for _, d := range want {
					b.Add(Datagram{Payload: d, To: to.LocalAddr(), Merge: !test.apart})
				}
				failed, alone := b.Send(w)
				if failed != 0 || w.messages != test.messages {
					t.Errorf("got %d messages and %d failures, want %d messages", w.messages, failed, test.messages)
				}
				if got := len(alone) > 0 && alone[0] == to.LocalAddr(); got != test.refuses {
					t.Errorf("places to which datagrams can't go as one: got %v, want any: %t", alone, test.refuses)
				}
				var got [][]byte
				for range want {
					buf := make([]byte, 1<<16)
					n, err := to.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, buf[:n])
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Error(d)
				}
			}
		})
	}
}
