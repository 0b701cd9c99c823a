// Service.java -- A small HTTP service with what the JDK has: -Dserver.port says where, the file VERSION what it answers.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executors;

public class Service {
  static String version;

  static void answer(HttpExchange exchange, int status, String text) throws IOException {
    exchange.getResponseHeaders().set("X-Version", version);
    exchange.sendResponseHeaders(status, text.length());
    exchange.getResponseBody().write(text.getBytes());
    exchange.close();
  }

  public static void main(String[] arguments) throws IOException {
    int port = Integer.getInteger("server.port", 8080);
    version = Files.readString(Path.of("VERSION")).strip();
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 512);
    server.setExecutor(Executors.newFixedThreadPool(16));
    server.createContext("/", exchange -> answer(exchange, 200, "hello from " + version));
    server.createContext("/healthz", exchange -> answer(exchange, Boolean.getBoolean("sick") ? 503 : 200, "ok"));
    // What is under way at SIGTERM has a second to finish; nginx sends nothing any more by then.
    Runtime.getRuntime().addShutdownHook(new Thread(() -> server.stop(1)));
    server.start();
    System.out.println("version " + version + " listens on " + port);
  }
}
