// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/meshd/meshd/internal/path"
)

// CountProbes begins to count the probes of paths on the host's link.
func CountProbes(ctx context.Context, h *Host) error {
	magic := path.Magic()
	match := fmt.Sprintf("meta l4proto udp @th,64,32 %#x", binary.BigEndian.Uint32(magic[:]))
	_, err := h.Run(ctx, "nft", fmt.Sprintf(`table inet lab-probes {
		counter received { }
		counter sent { }
		chain in { type filter hook prerouting priority raw; iifname %[1]s %[2]s counter name received; }
		chain out { type filter hook postrouting priority 300; oifname %[1]s %[2]s counter name sent; }
	}`, HostLink, match))
	return err
}

// Probes returns the bytes of all probes since CountProbes, with the headers of IP and UDP.
func Probes(ctx context.Context, h *Host) (sent, received int, err error) {
	out, err := h.Run(ctx, "nft", "--json", "list", "counters", "table", "inet", "lab-probes")
	if err != nil {
		return 0, 0, err
	}
	var list struct {
		NFTables []struct {
			Counter struct {
				Name  string
				Bytes int
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return 0, 0, fmt.Errorf("counters of %s: %w", h.Name, err)
	}
	for _, o := range list.NFTables {
		switch o.Counter.Name {
		case "sent":
			sent = o.Counter.Bytes
		case "received":
			received = o.Counter.Bytes
		}
	}
	return sent, received, nil
}
