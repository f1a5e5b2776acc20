// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/meshd/meshd/internal/control"
)

// setResolver has the system ask the resolver of a configuration for names, alone, and
// none of ours if it names none. A system without resolvconf goes on as it is.
func (c *client) setResolver(ctx context.Context, config control.ClientConfig) error {
	text := ""
	if config.Resolver != "" {
		text = "nameserver " + config.Resolver + "\n"
		if len(config.Search) > 0 {
			text += "search " + strings.Join(config.Search, " ") + "\n"
		}
	}
	if text == c.resolver {
		return nil
	}
	err := c.resolvconf(ctx, text)
	if errors.Is(err, exec.ErrNotFound) {
		c.Logger.Warn("resolvconf is not installed: names of the cluster don't resolve")
		err = nil
	}
	if err != nil {
		return fmt.Errorf("set resolver: %w", err)
	}
	c.resolver = text
	return nil
}

// resolvconf tells resolvconf(8), which systemd-resolved and openresolv have, what is
// asked on a link, as wg-quick(8) does: it is what counts alone. "" takes it back.
func resolvconf(ctx context.Context, link, text string) error {
	cmd := exec.CommandContext(ctx, "resolvconf", "-d", link, "-f")
	if text != "" {
		cmd = exec.CommandContext(ctx, "resolvconf", "-a", link, "-m", "0", "-x")
		cmd.Stdin = strings.NewReader(text)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("resolvconf: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
