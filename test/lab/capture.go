// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Capture looks for texts in all packets on a host: those that arrive at any of its links,
// and those that leave.
type Capture struct {
	socket *os.File
	texts  [][]byte
	done   chan struct{}

	packets, found atomic.Uint64
}

// captureSize is more than any packet has, also if the kernel has merged some.
const captureSize = 128 << 10

// StartCapture begins to look for the texts.
func StartCapture(h *Host, texts ...[]byte) (*Capture, error) {
	c := &Capture{texts: texts, done: make(chan struct{})}
	err := h.Do(func() error {
		// packet(7): the protocol is in network order, and without bind it is all links.
		protocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
		if err != nil {
			return err
		}
		c.socket = os.NewFile(uintptr(fd), "capture")
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, exchangeBuffer)
	})
	if err != nil {
		if c.socket != nil {
			err = errors.Join(err, c.socket.Close())
		}
		return nil, fmt.Errorf("capture packets on %s: %w", h.Name, err)
	}
	go c.read()
	return c, nil
}

func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, captureSize)
	for {
		n, err := c.socket.Read(buf)
		switch {
		case errors.Is(err, unix.ENETDOWN): // a link has gone
			continue
		case err != nil:
			return
		}
		c.packets.Add(1)
		for _, text := range c.texts {
			if bytes.Contains(buf[:n], text) {
				c.found.Add(1)
				break
			}
		}
	}
}

// Stop ends the capture. It returns how many packets there were, and how many of them had
// one of the texts.
func (c *Capture) Stop() (packets, found uint64) {
	_ = c.socket.Close()
	<-c.done
	return c.packets.Load(), c.found.Load()
}
