// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/test/lab"
)

// roundTrip is the round trip time that is added to a newcomer's packets. A longer
// handshake is easier to disturb.
const roundTrip = 200 * time.Millisecond

// distance is a device of the internet's router that delays the packets of distant hosts.
// It works with every kernel, without netem.
type distance struct {
	router *lab.Host
	device *os.File
	treat  treatment
	work   sync.WaitGroup
}

// treatment decides what becomes of a packet: how many of it go on, and how much later. It
// doesn't keep the packet.
type treatment func(packet []byte) (copies int, later time.Duration)

// distant delays all packets.
func distant([]byte) (copies int, later time.Duration) { return 1, roundTrip }

const (
	distanceLink  = "distance"
	distanceTable = "100"
)

type delayed struct {
	due    time.Time
	packet []byte
}

func newDistance(ctx context.Context, router *lab.Host, treat treatment) (*distance, error) {
	d := &distance{router: router, treat: treat}
	err := router.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(distanceLink)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		d.device = os.NewFile(uintptr(fd), distanceLink) // only now can it be waited for
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make device %s: %w", distanceLink, err)
	}
	for _, args := range [][]string{
		{"link", "set", distanceLink, "up"},
		{"route", "add", "default", "dev", distanceLink, "table", distanceTable},
	} {
		if _, err := router.Run(ctx, "ip", args...); err != nil {
			return nil, err
		}
	}
	// Packets keep their destination until they leave to a host.
	if _, err := router.Run(ctx, "nft", "insert", "rule", "inet", "lab", "leave", "oifname", distanceLink, "accept"); err != nil {
		return nil, err
	}
	packets := make(chan delayed, 4096)
	d.work.Go(func() { d.take(packets) })
	d.work.Go(func() { d.give(packets) })
	return d, nil
}

func (d *distance) take(packets chan<- delayed) {
	defer close(packets)
	for {
		b := make([]byte, lab.UnderlayMTU)
		n, err := d.device.Read(b)
		if err != nil {
			return
		}
		copies, later := d.treat(b[:n])
		for range copies {
			if later == 0 {
				_, _ = d.device.Write(b[:n]) // fails at the end
			} else {
				packets <- delayed{time.Now().Add(later), b[:n]}
			}
		}
	}
}

func (d *distance) give(packets <-chan delayed) {
	for p := range packets {
		time.Sleep(time.Until(p.due))
		_, _ = d.device.Write(p.packet) // fails at the end
	}
}

// add routes a host's packets through the device.
func (d *distance) add(ctx context.Context, h *lab.Host) error {
	number := h.Public().As4()[3]
	_, err := d.router.Run(ctx, "ip", "rule", "add", "priority", "100", "iif", fmt.Sprintf("host%d", number), "lookup", distanceTable)
	if err != nil {
		return err
	}
	_, err = d.router.Run(ctx, "nft", "add", "element", "inet", "lab", "sources", fmt.Sprintf("{ %s . %s }", distanceLink, h.Public()))
	return err
}

func (d *distance) close() error {
	err := d.device.Close()
	d.work.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
