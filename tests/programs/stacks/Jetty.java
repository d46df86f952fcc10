// Jetty on descriptor 0, which is the only one that Java takes as a socket: `sh -c 'exec java … <&3'`.
// SIGTERM: Jetty's own graceful stop.
//
// Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
// start; IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, it announces
// closes for that long before it stops.

import java.io.File;
import java.io.IOException;
import javax.servlet.http.HttpServletRequest;
import javax.servlet.http.HttpServletResponse;
import org.eclipse.jetty.server.Request;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.server.handler.AbstractHandler;
import org.eclipse.jetty.server.handler.StatisticsHandler;

public class Jetty {
    static volatile boolean draining;

    static String variable(String name) {
        return System.getenv().getOrDefault(name, "");
    }

    static long milliseconds(String name) {
        return (long) (1000 * Double.parseDouble("0" + variable(name)));
    }

    static class Answer extends AbstractHandler {
        @Override
        public void handle(String path, Request base, HttpServletRequest request, HttpServletResponse response)
                throws IOException {
            try {
                if (path.equals("/slow")) {
                    new File(variable("IN_FLIGHT")).createNewFile();
                    Thread.sleep(1000);
                }
            } catch (InterruptedException stopped) {
                throw new IOException(stopped);
            }
            if (draining) {
                response.setHeader("Connection", "close");
            }
            response.setHeader("x-prefork-generation", variable("PREFORK_GENERATION"));
            response.setHeader("x-prefork-pid", "" + ProcessHandle.current().pid());
            response.getWriter().print("Hello from Jetty");
            base.setHandled(true);
        }
    }

    public static void main(String[] arguments) throws Exception {
        if (new File(variable("BROKEN")).exists()) {
            System.exit(1);
        }
        Thread.sleep(milliseconds("START_DELAY"));
        Server server = new Server();
        ServerConnector connector = new ServerConnector(server);
        connector.setInheritChannel(true);
        server.addConnector(connector);
        // It counts requests in flight, for which `stop` waits.
        StatisticsHandler statistics = new StatisticsHandler();
        statistics.setHandler(new Answer());
        server.setHandler(statistics);
        server.setStopTimeout(10_000);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                draining = milliseconds("LINGER") > 0;
                Thread.sleep(milliseconds("LINGER"));
                server.stop();
            } catch (Exception error) {
                error.printStackTrace();
            }
            // Otherwise the status would be that of the signal, 143.
            Runtime.getRuntime().halt(0);
        }));
        server.start();
        server.join();
    }
}
