// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"context"
	"net"
	"time"

	"github.com/meshd/meshd/internal/wait"
)

// announceAddr is where routers say that they have started anew, or that their address has
// changed (RFC 6887, section 14.1.1; RFC 6886, section 3.2.1).
const announceAddr = "224.0.0.1:5350"

// relistenAfter is how long to wait after an error: without announcements, a restart is noticed
// within checkEvery.
const relistenAfter = time.Minute

// listen has the gateway asked when it announces something. Anybody on the link may forge that,
// so nothing else follows, and not often.
func (m *Mapper) listen(ctx context.Context) {
	for ctx.Err() == nil {
		// For an address of a group, the socket shares its port with others' (SO_REUSEADDR).
		conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp4", announceAddr)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			m.serve(conn)
			stop()
			_ = conn.Close() // it only receives
		}
		if wait.Sleep(ctx, relistenAfter) != nil {
			return
		}
	}
}

// serve takes announcements until there is an error.
func (m *Mapper) serve(conn net.PacketConn) {
	buf := make([]byte, 1) // what it says does not matter
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		udp, ok := from.(*net.UDPAddr)
		m.mu.Lock()
		isGateway := ok && udp.AddrPort().Addr().Unmap() == m.machine.target.Gateway
		if isGateway {
			m.machine.hint(time.Now())
		}
		m.mu.Unlock()
		if isGateway {
			signal(m.wake)
		}
	}
}
